-- report_presence(keys=[subscribers, group_settings, fencing_token],
--                 args=[name, report, forget_ms, group, settings, first, registry, remembered_ms])
--
-- fencing_token   counter  advanced when the report tells other subscribers, which have reported within remembered_ms, about
--                          handlers that they did not know of: it is the first one for that long or its registry, a
--                          hash of the handlers, is new, and another subscriber has another registry
-- subscribers     hash  name -> "<now_ms> <report>". Subscribers that have not reported for forget_ms are removed, and those
--                          whose last report says that they stop, after remembered_ms
-- group_settings  hash  group -> its settings, see group_settings.py. Replaced if first is "1", else written if missing

-- include: server_ms
-- include: integer

local subscribers, group_settings, fencing_token = KEYS[1], KEYS[2], KEYS[3]
local name, report, forget_ms = ARGV[1], ARGV[2], tonumber(ARGV[3])
local group, settings, first = ARGV[4], ARGV[5], ARGV[6] == "1"
local registry, remembered_ms = ARGV[7], tonumber(ARGV[8])

-- A quote inside a JSON string has a backslash before it, so this occurs only where it is meant.
local REGISTRY = '"registry": "'
local STOPPED = '"stopped": true'
local same = REGISTRY .. registry .. '"'

local now_ms = server_ms()
local all = redis.call("HGETALL", subscribers)
local known, differs = false, false
for i = 1, #all, 2 do
    local other, text = all[i], all[i + 1]
    local at_ms = tonumber(string.match(text, "^%d+") or 0)
    local remembered = at_ms >= now_ms - remembered_ms
    if at_ms < now_ms - forget_ms or not remembered and string.find(text, STOPPED, 1, true) then
        redis.call("HDEL", subscribers, other)
    elseif remembered then
        local is_same = string.find(text, same, 1, true)
        if other == name then
            known = is_same and not first
        elseif string.find(text, REGISTRY, 1, true) and not is_same then
            differs = true
        end
    end
end
redis.call("HSET", subscribers, name, integer(now_ms) .. " " .. report)
redis.call("PEXPIRE", subscribers, forget_ms)
if first then
    redis.call("HSET", group_settings, group, settings)
else
    redis.call("HSETNX", group_settings, group, settings)
end
if differs and not known then
    redis.call("INCRBY", fencing_token, 1)
end
