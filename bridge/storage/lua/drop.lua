-- drop(keys=[dead, dead_size], args=[id_1 .. id_n])
--
-- dead       stream  loses the dead letters of these ids
-- dead_size  hash    bytes: less what they held, see write_dead_letter.lua
--
-- Returns how many existed. Calling it again is safe.

-- include: bytes_of
-- include: integer

local dead, dead_size = KEYS[1], KEYS[2]

local removed, bytes = 0, 0
for _, id in ipairs(ARGV) do
    for _, entry in ipairs(redis.call("XRANGE", dead, id, id)) do
        bytes = bytes + bytes_of(entry[2])
        removed = removed + redis.call("XDEL", dead, id)
    end
end
if removed > 0 and redis.call("HEXISTS", dead_size, "bytes") == 1 then
    redis.call("HINCRBY", dead_size, "bytes", integer(-bytes))
end
return removed
