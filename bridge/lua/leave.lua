-- leave(keys=[journal], args=[group, consumer])
--
-- journal  stream
--
-- Removes the consumer from the group if it holds no entry: removing one that does would drop its entries.
-- Returns 1 when it was removed.

local held = redis.call("XPENDING", KEYS[1], ARGV[1], "-", "+", 1, ARGV[2])
if #held > 0 then
    return 0
end
redis.call("XGROUP", "DELCONSUMER", KEYS[1], ARGV[1], ARGV[2])
return 1
