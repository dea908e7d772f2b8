-- elect(keys=[upkeep], args=[consumer, ttl_ms])
--
-- upkeep  string  the consumer that does the upkeep of its group, for ttl_ms after it last said so
--
-- Returns 1 when that is this consumer. With ttl_ms 0 it steps down.

local elected = redis.call("GET", KEYS[1])
if elected and elected ~= ARGV[1] then
    return 0
end
if ARGV[2] == "0" then
    redis.call("DEL", KEYS[1])
    return 0
end
redis.call("SET", KEYS[1], ARGV[1], "PX", ARGV[2])
return 1
