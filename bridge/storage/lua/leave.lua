-- leave(keys=[journal], args=[group, consumer, min_idle_ms])
--
-- journal  stream
--
-- Removes the consumer from the group, provided that it has not read for min_idle_ms and has no pending entry: Redis
-- would drop its pending entries with it. Returns 1 when it was removed.

-- include: fields_of

local journal = KEYS[1]
local group, consumer, min_idle_ms = ARGV[1], ARGV[2], tonumber(ARGV[3])

local pending = redis.call("XPENDING", journal, group, "-", "+", 1, consumer)
if #pending > 0 then
    return 0
end
for _, info in ipairs(redis.call("XINFO", "CONSUMERS", journal, group)) do
    local fields = fields_of(info)
    if fields["name"] == consumer and fields["idle"] >= min_idle_ms then
        redis.call("XGROUP", "DELCONSUMER", journal, group, consumer)
        return 1
    end
end
return 0
