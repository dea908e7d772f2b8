-- find_overdue(keys=[inflight, tasks, watermarks], args=[skipped, max_tasks, margin_ms, redispatch_ms, event_ttl_ms])
--
-- inflight    zset  task id -> when the task is overdue, ms
-- tasks       hash  task id -> what was sent, see include/in_flight.lua
-- watermarks  hash  "<lane>" -> sent_ms of the newest task of that lane that has started; "<lane> started" -> when the last
--                   one started, ms. Loses lanes in which no task has started for event_ttl_ms
--
-- Returns [task_id, task, left_queue, lane_moves, event_left_ms] for up to max_tasks overdue tasks after the `skipped`
-- first ones, the longest overdue first. left_queue is 1 when a task that was sent more than margin_ms later through the same lane has started: then the
-- message of this task is no longer in its queue. The margin is needed because batches of several subscribers overlap, and
-- because workers fetch messages before they start them. lane_moves is 1 when a task of the lane has started within
-- redispatch_ms. The event exists for event_left_ms more, at least.
--
-- A task that was given up is overdue when the marks of tasks expire, and is forgotten then.
--
-- A queue that is used no more, such as that of a tenant, must not be remembered indefinitely. A few lanes at random are
-- checked in each call, so that it takes the same time however many there are.

-- include: server_ms
-- include: integer
-- include: in_flight

local inflight, tasks, watermarks = KEYS[1], KEYS[2], KEYS[3]
local skipped, max_tasks = ARGV[1], ARGV[2]
local margin_ms, redispatch_ms, event_ttl_ms = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])

local CHECKED_FIELDS = 100

local now_ms = server_ms()
local found = {}
for _, task_id in ipairs(redis.call("ZRANGEBYSCORE", inflight, "-inf", integer(now_ms), "LIMIT", skipped, max_tasks)) do
    local record = redis.call("HGET", tasks, task_id)
    local sent_ms, json = parse_in_flight(record or "")
    local task = json and cjson.decode(json)
    if task and not given_up(task) then
        local lane = lane_of(task)
        local newest, started_ms = unpack(redis.call("HMGET", watermarks, lane, lane .. " started"))
        local left_queue = newest and tonumber(newest) > tonumber(sent_ms) + margin_ms
        local lane_moves = started_ms and tonumber(started_ms) > now_ms - redispatch_ms
        local appended_ms = tonumber(string.match(task.entry_id, "^%d+")) or 0
        local event_left_ms = math.max(0, appended_ms + event_ttl_ms - now_ms)
        found[#found + 1] = {task_id, json, left_queue and 1 or 0, lane_moves and 1 or 0, event_left_ms}
    else
        redis.call("ZREM", inflight, task_id)
        redis.call("HDEL", tasks, task_id)
    end
end

local idle_since_ms = now_ms - math.max(tonumber(event_ttl_ms), redispatch_ms)
for _, name in ipairs(redis.call("HRANDFIELD", watermarks, CHECKED_FIELDS)) do
    local lane = string.gsub(name, " started$", "")
    local sent_ms, started_ms = unpack(redis.call("HMGET", watermarks, lane, lane .. " started"))
    if tonumber(started_ms or sent_ms or now_ms) < idle_since_ms then
        redis.call("HDEL", watermarks, lane, lane .. " started")
    end
end
return found
