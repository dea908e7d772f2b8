-- elect(keys=[leader], args=[consumer, term_ms])
--
-- leader  string  the consumer that does the maintenance of its group; expires term_ms after its last call
--
-- Returns 1 when that is this consumer. With term_ms "0" it resigns.

local leader = KEYS[1]
local consumer, term_ms = ARGV[1], ARGV[2]

local elected = redis.call("GET", leader)
if elected and elected ~= consumer then
    return 0
end
if term_ms == "0" then
    redis.call("DEL", leader)
    return 0
end
redis.call("SET", leader, consumer, "PX", term_ms)
return 1
