-- park(keys=[dead, dead_size, parked], args=[mark_ttl_ms, max_entries, max_bytes, field_1, value_1, ...])
--
-- dead       stream  one entry per dead letter; the oldest make room: never more than max_entries of them, nor values
--                    of more than max_bytes together
-- dead_size  hash    bytes: of all values in dead; counted anew when it is missing. dropped: letters that made room
-- parked     string  marks this dead letter as written; expires after mark_ttl_ms. Every subscriber hears the same
--                    broken message, and a redelivered task fails again: one letter is enough.
--
-- Returns 1 when the letter was written, 0 when it had been written before. One that exceeds max_bytes alone is counted
-- as dropped and takes none of the others with it. XADD comes first: a Redis without memory refuses a script at its
-- first write that needs memory, and not once it has written.

local function bytes_of(fields)
    local bytes = 0
    for i = 2, #fields, 2 do
        bytes = bytes + #fields[i]
    end
    return bytes
end

if redis.call("EXISTS", KEYS[3]) == 1 then
    return 0
end
local own_bytes = bytes_of({unpack(ARGV, 4)})
if own_bytes > tonumber(ARGV[3]) then
    redis.call("HINCRBY", KEYS[2], "dropped", 1)
    redis.call("SET", KEYS[3], "1", "PX", ARGV[1])
    return 1
end
redis.call("XADD", KEYS[1], "*", unpack(ARGV, 4))

local entries = redis.call("XLEN", KEYS[1])
local bytes = redis.call("HGET", KEYS[2], "bytes")
if entries > 1 and bytes then
    bytes = bytes + own_bytes
else
    bytes = 0
    for _, entry in ipairs(redis.call("XRANGE", KEYS[1], "-", "+")) do
        bytes = bytes + bytes_of(entry[2])
    end
end
local dropped = 0
while entries > 0 and (entries > tonumber(ARGV[2]) or bytes > tonumber(ARGV[3])) do
    local oldest = redis.call("XRANGE", KEYS[1], "-", "+", "COUNT", 1)[1]
    redis.call("XDEL", KEYS[1], oldest[1])
    bytes = bytes - bytes_of(oldest[2])
    entries, dropped = entries - 1, dropped + 1
end
redis.call("HSET", KEYS[2], "bytes", string.format("%.0f", bytes))
redis.call("HINCRBY", KEYS[2], "dropped", dropped)
redis.call("SET", KEYS[3], "1", "PX", ARGV[1])
return 1
