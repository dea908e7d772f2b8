-- park(keys=[dead, dead_size, parked, done, lease, inflight, pairs],
--      args=[mark_ttl_ms, max_entries, max_bytes, task_id, done_ttl_ms, ended, field_1, value_1, ...])
--
-- dead       stream  one entry per dead letter; the oldest make room: never more than max_entries of them, nor values
--                    of more than max_bytes together
-- dead_size  hash    bytes: of all values in dead; counted anew when it is missing. dropped: letters that made room.
--                    written: letters ever
-- parked     string  id of this dead letter, which is written; expires after mark_ttl_ms. Every subscriber hears the same
--                    broken message, and a redelivered task fails again: one letter is enough.
-- done, lease, inflight, pairs
--                    of the task that leaves the ledger with the letter, see begin.lua; left out when there is none.
--                    It has ended, unless done_ttl_ms is "0"; then its done mark is "<letter> <ended>"
--
-- Returns 1 when the letter was written, 0 when it had been written before. One that exceeds max_bytes alone is counted
-- as dropped and takes none of the others with it. A write that needs memory comes first on each way: a Redis without
-- memory refuses a script at such a write, and not once it has written. So no task ends without its letter.

local function bytes_of(fields)
    local bytes = 0
    for i = 2, #fields, 2 do
        bytes = bytes + #fields[i]
    end
    return bytes
end

local function strike_task(letter)
    if #KEYS > 3 then
        if ARGV[5] ~= "0" then
            redis.call("SET", KEYS[4], letter .. " " .. ARGV[6], "PX", ARGV[5])
            redis.call("DEL", KEYS[5])
        end
        redis.call("ZREM", KEYS[6], ARGV[4])
        redis.call("HDEL", KEYS[7], ARGV[4])
    end
end

local parked = redis.call("GET", KEYS[3])
if parked then
    strike_task(parked)
    return 0
end
local own_bytes = bytes_of({unpack(ARGV, 7)})
if own_bytes > tonumber(ARGV[3]) then
    redis.call("HINCRBY", KEYS[2], "dropped", 1)
    redis.call("HINCRBY", KEYS[2], "written", 1)
    redis.call("SET", KEYS[3], "0-0", "PX", ARGV[1])
    strike_task("0-0")
    return 1
end
local letter = redis.call("XADD", KEYS[1], "*", unpack(ARGV, 7))

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
redis.call("HINCRBY", KEYS[2], "written", 1)
redis.call("SET", KEYS[3], letter, "PX", ARGV[1])
strike_task(letter)
return 1
