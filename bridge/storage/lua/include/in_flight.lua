-- The ledger keeps "<sent_ms> <task>" of each task: when its message was sent, and JSON, see InFlightTask in in_flight.py.

local function format_in_flight(sent_ms, task)
    return sent_ms .. " " .. task
end

-- Return sent_ms, as text, and the JSON.
local function parse_in_flight(record)
    return string.match(record, "^(%d+) (.*)$")
end

-- Return the id of the dead letter of a task that was given up; nil if it was not. The JSON may be of an older version.
local function given_up(task)
    return task.given_up and task.given_up ~= "" and task.given_up or nil
end

-- Return the name of the lane of a task: messages of one lane are consumed in their order. Where the queue is unknown,
-- most messages of one handler take the same way.
local function lane_of(task)
    return (task.queue ~= "" and task.queue or task.handler) .. " " .. task.priority
end
