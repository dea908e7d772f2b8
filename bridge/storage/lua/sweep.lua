-- sweep(keys=[inflight, pairs, done_1, lease_1 .. done_n, lease_n],
--       args=[redispatch_ms, max_wait_ms, task_1, waits_1 .. task_n, waits_n])
--
-- inflight  zset    task id -> when it is overdue, ms
-- pairs     hash    task id -> "<sent_ms> <pair>"
-- done_i    string  exists when task i has ended: it leaves the ledger
-- lease_i   hash    see begin.lua; while task i runs it is not overdue, nor while it waits in its queue (waits_i is "1").
--                   But other messages may keep that queue busy: what was sent once and has waited for max_wait_ms is
--                   sent again.
--
-- Returns the ids of the tasks that are to be sent again.

local now = redis.call("TIME")
local now_ms = tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000)

local function waits(task_id)
    local sent, text = string.match(redis.call("HGET", KEYS[2], task_id) or "", "^(%d+) (.*)$")
    return sent and (now_ms - sent < tonumber(ARGV[2]) or cjson.decode(text).redispatches > 0)
end

local send = {}
for i = 1, (#KEYS - 2) / 2 do
    local task_id = ARGV[2 * i + 1]
    local until_ms = redis.call("HGET", KEYS[2 * i + 2], "until_ms")
    if redis.call("EXISTS", KEYS[2 * i + 1]) == 1 then
        redis.call("ZREM", KEYS[1], task_id)
        redis.call("HDEL", KEYS[2], task_id)
    elseif until_ms and tonumber(until_ms) > now_ms or ARGV[2 * i + 2] == "1" and waits(task_id) then
        redis.call("ZADD", KEYS[1], "XX", string.format("%.0f", now_ms + ARGV[1]), task_id)
    else
        send[#send + 1] = task_id
    end
end
return send
