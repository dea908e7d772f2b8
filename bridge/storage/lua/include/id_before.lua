-- Whether the stream id `a` comes before `b`. Ids are compared as text: Lua's numbers are not exact beyond 2 ^ 53.
local function id_before(a, b)
    local function less(one, other)
        if #one ~= #other then
            return #one < #other
        end
        return one < other
    end
    local a_ms, a_sequence = string.match(a, "^(%d+)-(%d+)$")
    local b_ms, b_sequence = string.match(b, "^(%d+)-(%d+)$")
    return less(a_ms, b_ms) or (a_ms == b_ms and less(a_sequence, b_sequence))
end
