-- renew(keys=[lease], args=[token, lease_ms, keep_ms])
--
-- lease  hash  see start_run.lua; expires after keep_ms
--
-- Returns 1 when the run of this token may continue, 0 when it was considered dead and another run has started.

-- include: server_ms
-- include: integer

local lease = KEYS[1]
local token, lease_ms, keep_ms = ARGV[1], tonumber(ARGV[2]), ARGV[3]

if redis.call("HGET", lease, "token") ~= token then
    return 0
end
redis.call("HSET", lease, "until_ms", integer(server_ms() + lease_ms))
redis.call("HDEL", lease, "asked_ms")
redis.call("PEXPIRE", lease, keep_ms)
return 1
