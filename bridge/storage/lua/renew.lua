-- renew(keys=[lease], args=[token, lease_ms, keep_ms])
--
-- lease  hash  see begin.lua; lives keep_ms longer
--
-- Returns 1 when the run of this token goes on, 0 when it counted as dead and another has begun.

if redis.call("HGET", KEYS[1], "token") ~= ARGV[1] then
    return 0
end
local now = redis.call("TIME")
local now_ms = tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000)
redis.call("HSET", KEYS[1], "until_ms", string.format("%.0f", now_ms + ARGV[2]))
redis.call("HDEL", KEYS[1], "asked_ms")
redis.call("PEXPIRE", KEYS[1], ARGV[3])
return 1
