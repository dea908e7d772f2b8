-- The ledger keeps "<sent_ms> <task>" of each task: when its message was sent, and JSON, see InFlightTask in in_flight.py.

local function format_in_flight(sent_ms, task)
    return sent_ms .. " " .. task
end

-- Return sent_ms, as text, and the JSON.
local function parse_in_flight(record)
    return string.match(record, "^(%d+) (.*)$")
end
