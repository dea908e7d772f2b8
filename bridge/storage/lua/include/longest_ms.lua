-- Return the longest lifetime in rows of the settings of groups, ms. A row is "<event_ttl_ms> <dedup_ttl_ms> <JSON>", or
-- "<event_ttl_ms> <dedup_ttl_ms> <until_ms>" of an operator, see group_settings.py, or false for a group of an older
-- version, for which own_ms counts.
-- position: 1 for event_ttl_ms, 2 for dedup_ttl_ms.
local function longest_ms(rows, position, own_ms)
    local longest = 0
    for _, row in ipairs(rows) do
        local lifetimes = {string.match(row or "", "^(%d+) (%d+) ")}
        longest = math.max(longest, tonumber(lifetimes[position] or own_ms))
    end
    return longest
end
