-- claim(keys=[journal, fencing_token], args=[group, consumer, min_idle_ms, cursor, count])
--
-- journal        stream  up to count entries that a consumer of the group has held for min_idle_ms pass to this one,
--                        from the entry `cursor` on
-- fencing_token  string  counter; advanced if any has, in the same step: a consumer that held them can no longer dispatch them
--
-- Returns [cursor, taken, removed]: where to go on, "0-0" at the end; how many entries passed; and how many no longer
-- exist, which Redis drops from the pending ones. Redis 6.2 passes these too.

local journal, fencing_token = KEYS[1], KEYS[2]
local group, consumer, min_idle_ms, cursor, count = unpack(ARGV)

-- XAUTOCLAIM comes first because it needs no memory: Redis without memory refuses no later write of a script.
local reply = redis.call("XAUTOCLAIM", journal, group, consumer, min_idle_ms, cursor, "COUNT", count, "JUSTID")
if #reply[2] > 0 then
    redis.call("INCRBY", fencing_token, 1)
end
return {reply[1], #reply[2], reply[3] and #reply[3] or 0}
