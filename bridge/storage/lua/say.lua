-- say(keys=[subscribers], args=[name, text, forget_ms])
--
-- subscribers  hash  name -> "<now_ms> <text>"; those that have said nothing for forget_ms go

local now = redis.call("TIME")
local now_ms = tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000)
local all = redis.call("HGETALL", KEYS[1])
for i = 1, #all, 2 do
    if tonumber(string.match(all[i + 1], "^%d+") or 0) < now_ms - tonumber(ARGV[3]) then
        redis.call("HDEL", KEYS[1], all[i])
    end
end
redis.call("HSET", KEYS[1], ARGV[1], string.format("%.0f ", now_ms) .. ARGV[2])
redis.call("PEXPIRE", KEYS[1], ARGV[3])
