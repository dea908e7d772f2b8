-- headers(keys=[journal], args=[before, max_entries])
--
-- journal  stream  its newest entries up to the stream id `before`; with "(" in front of it, that one is left out
--
-- Returns [entry, id, type, replay] of each, the newest first, without the event, which may be large. replay is 1 for
-- an entry that a replay appended.

-- include: fields_of

local journal = KEYS[1]
local before, max_entries = ARGV[1], ARGV[2]

local headers = {}
for i, entry in ipairs(redis.call("XREVRANGE", journal, before, "-", "COUNT", max_entries)) do
    local fields = fields_of(entry[2])
    headers[i] = {entry[1], fields["id"] or "", fields["type"] or "", fields["group"] and 1 or 0}
end
return headers
