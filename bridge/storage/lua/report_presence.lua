-- report_presence(keys=[subscribers], args=[name, report, forget_ms])
--
-- subscribers  hash  name -> "<now_ms> <report>". Subscribers that have not reported for forget_ms are removed

-- include: server_ms
-- include: integer

local subscribers = KEYS[1]
local name, report, forget_ms = ARGV[1], ARGV[2], tonumber(ARGV[3])

local now_ms = server_ms()
local all = redis.call("HGETALL", subscribers)
for i = 1, #all, 2 do
    if tonumber(string.match(all[i + 1], "^%d+") or 0) < now_ms - forget_ms then
        redis.call("HDEL", subscribers, all[i])
    end
end
redis.call("HSET", subscribers, name, integer(now_ms) .. " " .. report)
redis.call("PEXPIRE", subscribers, forget_ms)
