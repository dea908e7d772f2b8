-- find_overdue(keys=[inflight, tasks, watermarks], args=[max_tasks, margin_ms])
--
-- inflight    zset  task id -> when the task is overdue, ms
-- tasks       hash  task id -> what was sent, see include/in_flight.lua
-- watermarks  hash  "<queue> <priority>" -> sent_ms of the newest task of that queue that has started
--
-- Returns [task_id, task, left_queue] for up to max_tasks overdue tasks, the longest overdue first. left_queue is 1 when
-- a task that was sent more than margin_ms later through the same queue has started: then the message of this task is
-- no longer in the queue. The margin is needed because batches of several subscribers overlap, and because workers
-- fetch messages before they start them.

-- include: server_ms
-- include: integer
-- include: in_flight

local inflight, tasks, watermarks = KEYS[1], KEYS[2], KEYS[3]
local max_tasks, margin_ms = ARGV[1], tonumber(ARGV[2])

local found = {}
for _, task_id in ipairs(redis.call("ZRANGEBYSCORE", inflight, "-inf", integer(server_ms()), "LIMIT", 0, max_tasks)) do
    local record = redis.call("HGET", tasks, task_id)
    if record then
        local sent_ms, json = parse_in_flight(record)
        local task = cjson.decode(json)
        local newest = redis.call("HGET", watermarks, task.queue .. " " .. task.priority)
        found[#found + 1] = {task_id, json, newest and tonumber(newest) > tonumber(sent_ms) + margin_ms and 1 or 0}
    else
        redis.call("ZREM", inflight, task_id)
    end
end
return found
