-- Return how many bytes the values have in a flat list in which names and values alternate.
local function bytes_of(list)
    local bytes = 0
    for i = 2, #list, 2 do
        bytes = bytes + #list[i]
    end
    return bytes
end
