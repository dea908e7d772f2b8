-- overdue(keys=[inflight, pairs, lanes], args=[max_tasks, margin_ms])
--
-- inflight  zset  task id -> when it is overdue, ms
-- pairs     hash  task id -> "<sent_ms> <pair>"
-- lanes     hash  "<queue> <priority>" -> sent_ms of the newest task of that queue which has begun
--
-- Returns [task_id, pair, passed] for up to max_tasks overdue tasks, the longest overdue first. passed is 1 when a
-- task sent margin_ms later through the same queue has begun: then this one's message has left the queue. The margin is
-- there because batches of several subscribers overlap, and workers fetch messages before they begin them.

local now = redis.call("TIME")
local now_ms = tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000)
local due = redis.call("ZRANGEBYSCORE", KEYS[1], "-inf", string.format("%.0f", now_ms), "LIMIT", 0, ARGV[1])
local found = {}
for _, task_id in ipairs(due) do
    local pair = redis.call("HGET", KEYS[2], task_id)
    if pair then
        local sent, text = string.match(pair, "^(%d+) (.*)$")
        local fields = cjson.decode(text)
        local newest = redis.call("HGET", KEYS[3], fields.queue .. " " .. fields.priority)
        found[#found + 1] = {task_id, text, newest and tonumber(newest) > tonumber(sent) + ARGV[2] and 1 or 0}
    else
        redis.call("ZREM", KEYS[1], task_id)
    end
end
return found
