-- report_presence(keys=[subscribers, group_settings], args=[name, report, forget_ms, group, settings, first])
--
-- subscribers     hash  name -> "<now_ms> <report>". Subscribers that have not reported for forget_ms are removed
-- group_settings  hash  group -> its settings, see group_settings.py. Replaced if first is "1", else written if missing

-- include: server_ms
-- include: integer

local subscribers, group_settings = KEYS[1], KEYS[2]
local name, report, forget_ms = ARGV[1], ARGV[2], tonumber(ARGV[3])
local group, settings, first = ARGV[4], ARGV[5], ARGV[6] == "1"

local now_ms = server_ms()
local all = redis.call("HGETALL", subscribers)
for i = 1, #all, 2 do
    if tonumber(string.match(all[i + 1], "^%d+") or 0) < now_ms - forget_ms then
        redis.call("HDEL", subscribers, all[i])
    end
end
redis.call("HSET", subscribers, name, integer(now_ms) .. " " .. report)
redis.call("PEXPIRE", subscribers, forget_ms)
if first then
    redis.call("HSET", group_settings, group, settings)
else
    redis.call("HSETNX", group_settings, group, settings)
end
