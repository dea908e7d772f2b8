-- drop(keys=[dead, dead_size], args=[id_1 .. id_n])
--
-- dead       stream  loses the dead letters of these ids
-- dead_size  hash    bytes, entries: less what they held, see write_dead_letter.lua
--
-- Returns how many existed. Calling it again is safe.

-- include: bytes_of
-- include: drop_dead_letter

local dead, dead_size = KEYS[1], KEYS[2]

local removed = 0
for _, id in ipairs(ARGV) do
    if drop_dead_letter(dead, dead_size, id) then
        removed = removed + 1
    end
end
return removed
