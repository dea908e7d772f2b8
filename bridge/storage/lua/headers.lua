-- headers(keys=[journal], args=[before, max_entries])
--
-- journal  stream  its newest entries up to the stream id `before`, which is excluded with "(" in front
--
-- Returns [entry, id, type, replay] of each, the newest first, without the event, which may be large. replay is 1 when
-- the entry is of a replay.

local headers = {}
for i, entry in ipairs(redis.call("XREVRANGE", KEYS[1], ARGV[1], "-", "COUNT", ARGV[2])) do
    local fields = {}
    for j = 1, #entry[2], 2 do
        fields[entry[2][j]] = entry[2][j + 1]
    end
    headers[i] = {entry[1], fields["id"] or "", fields["type"] or "", fields["group"] and 1 or 0}
end
return headers
