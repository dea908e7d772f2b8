-- Return the table of a flat list in which names and values alternate.
local function fields_of(list)
    local fields = {}
    for i = 1, #list, 2 do
        fields[list[i]] = list[i + 1]
    end
    return fields
end
