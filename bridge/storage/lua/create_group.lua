-- create_group(keys=[journal, journal_start, fencing_token], args=[group, start])
--
-- journal        stream  gets the group, which starts after the entry `start`; created if it does not exist
-- journal_start  string  deleted, since the journal may be a new one, see trim.lua
-- fencing_token  string  counter; advanced in the same step: consumers of a group of this name that was deleted may still
--                        hold entries, which the new one reads again
--
-- Returns 1 when the group was created, 0 when it exists already.

local journal, journal_start, fencing_token = KEYS[1], KEYS[2], KEYS[3]
local group, start = ARGV[1], ARGV[2]

local reply = redis.pcall("XGROUP", "CREATE", journal, group, start, "MKSTREAM")
if reply.err then
    return string.find(reply.err, "BUSYGROUP", 1, true) and 0 or reply
end
redis.call("DEL", journal_start)
redis.call("INCRBY", fencing_token, 1)
return 1
