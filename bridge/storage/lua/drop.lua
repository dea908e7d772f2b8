-- drop(keys=[dead, dead_size], args=[letter_1 .. letter_n])
--
-- dead       stream  its entries of these ids are removed
-- dead_size  hash    bytes: less what they held, see park.lua
--
-- Returns how many were removed; calling again is safe.

local removed, bytes = 0, 0
for _, letter in ipairs(ARGV) do
    for _, entry in ipairs(redis.call("XRANGE", KEYS[1], letter, letter)) do
        for i = 2, #entry[2], 2 do
            bytes = bytes + #entry[2][i]
        end
        removed = removed + redis.call("XDEL", KEYS[1], letter)
    end
end
if removed > 0 and redis.call("HEXISTS", KEYS[2], "bytes") == 1 then
    redis.call("HINCRBY", KEYS[2], "bytes", string.format("%.0f", -bytes))
end
return removed
