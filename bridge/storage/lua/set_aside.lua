-- set_aside(keys=[journal, journal_start, set_aside, aside, fencing_token_1 .. fencing_token_n],
--           args=[max_ahead_ms, group_1 .. group_n])
--
-- journal          stream  is renamed to `aside` if its last id is more than max_ahead_ms ahead of the clock; an empty
--                          one with the same groups takes its place
-- journal_start    string  deleted, see trim.lua
-- set_aside        list    names of the streams that were set aside, the oldest first
-- aside            stream  what was the journal; move_back.lua moves its entries back
-- fencing_token_i  string  counter of group_i; advanced in the same step: consumers hold entries that they will read again
--
-- New entries get ids after the last one, whatever the clock is. So one entry with an id of the future, which any
-- publisher can write, or a clock that was ahead for a moment, gives all later ones such ids: they are not trimmed. After
-- the last possible id nothing can be published. Redis cannot lower the last id of a stream that has or had such entries.
-- The new one accepts no id of the past: it would be taken for the time when a signed event was received.
--
-- Returns how far the last id was ahead, ms, as text; "0" if nothing had to be done; nil if the journal has other groups.

-- include: server_ms
-- include: integer
-- include: fields_of

local FIRST_GROUP, FIRST_TOKEN = 2, 5

local journal, journal_start, set_aside, aside = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local max_ahead_ms = tonumber(ARGV[1])

if redis.call("EXISTS", journal) == 0 then
    return "0"
end
local last_id = fields_of(redis.call("XINFO", "STREAM", journal))["last-generated-id"]
local ahead_ms = tonumber(string.match(last_id, "^%d+")) - server_ms()
if ahead_ms <= max_ahead_ms then
    return "0"
end

local tokens = {}
for i = FIRST_GROUP, #ARGV do
    tokens[ARGV[i]] = KEYS[FIRST_TOKEN + i - FIRST_GROUP]
end
local groups = {}
for i, info in ipairs(redis.call("XINFO", "GROUPS", journal)) do
    groups[i] = fields_of(info)["name"]
    if not tokens[groups[i]] then
        return false
    end
end

-- RENAME comes first because it needs no memory: Redis without memory refuses no later write of a script.
redis.call("RENAME", journal, aside)
redis.call("DEL", journal_start)
redis.call("RPUSH", set_aside, aside)
for _, group in ipairs(groups) do
    redis.call("XGROUP", "CREATE", journal, group, "0", "MKSTREAM")
    redis.call("INCRBY", tokens[group], 1)
end
if #groups > 0 then
    redis.call("XSETID", journal, integer(server_ms()) .. "-0")
end
return integer(ahead_ms)
