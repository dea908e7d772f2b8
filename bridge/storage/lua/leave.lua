-- leave(keys=[journal], args=[group, consumer, min_idle_ms])
--
-- journal  stream
--
-- Removes the consumer from the group if it holds no entry, for removing one that does would drop its entries, and
-- has not read for min_idle_ms. Returns 1 when it was removed.

local held = redis.call("XPENDING", KEYS[1], ARGV[1], "-", "+", 1, ARGV[2])
if #held > 0 then
    return 0
end
for _, consumer in ipairs(redis.call("XINFO", "CONSUMERS", KEYS[1], ARGV[1])) do
    local fields = {}
    for i = 1, #consumer, 2 do
        fields[consumer[i]] = consumer[i + 1]
    end
    if fields["name"] == ARGV[2] and fields["idle"] >= tonumber(ARGV[3]) then
        redis.call("XGROUP", "DELCONSUMER", KEYS[1], ARGV[1], ARGV[2])
        return 1
    end
end
return 0
