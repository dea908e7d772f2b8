-- release(keys=[lease, inflight, pairs], args=[task_id, token, redispatch_ms, delay_ms])
--
-- lease     hash  see begin.lua; given up if it is of this token
-- inflight  zset  task id -> when it is overdue, ms
-- pairs     hash  task id -> "<sent_ms> <pair>"
--
-- For a run that ended without an end of its task: a retry is on its way and comes delay_ms from now.

if redis.call("HGET", KEYS[1], "token") == ARGV[2] then
    redis.call("DEL", KEYS[1])
end
local pair = redis.call("HGET", KEYS[3], ARGV[1])
if pair then
    local now = redis.call("TIME")
    local now_ms = tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000)
    local fields = cjson.decode(string.match(pair, "^%d+ (.*)$"))
    fields.retried = true
    redis.call("HSET", KEYS[3], ARGV[1], string.format("%.0f", now_ms) .. " " .. cjson.encode(fields))
    redis.call("ZADD", KEYS[2], string.format("%.0f", now_ms + ARGV[3] + ARGV[4]), ARGV[1])
end
