-- park(keys=[dead, parked], args=[mark_ttl_ms, max_entries, field_1, value_1, ...])
--
-- dead    stream  one entry per dead letter; the oldest make room beyond about max_entries
-- parked  string  marks this dead letter as written; expires after mark_ttl_ms. Every subscriber hears the same
--                 broken message, and a redelivered task fails again: one letter is enough.
--
-- Returns 1 when the letter was written, 0 when it had been written before.

if redis.call("EXISTS", KEYS[2]) == 1 then
    return 0
end
redis.call("XADD", KEYS[1], "MAXLEN", "~", ARGV[2], "*", unpack(ARGV, 3))
redis.call("SET", KEYS[2], "1", "PX", ARGV[1])
return 1
