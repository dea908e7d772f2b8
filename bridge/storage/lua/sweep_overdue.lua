-- sweep_overdue(keys=[inflight, tasks, done_1, lease_1 .. done_n, lease_n],
--               args=[redispatch_ms, max_wait_ms, task_1, waits_1 .. task_n, waits_n])
--
-- Decides which overdue tasks are sent again, see ledger.py.
--
-- inflight  zset    task id -> when the task is overdue, ms
-- tasks     hash    task id -> what was sent, see include/in_flight.lua
-- done_i    string  exists when task i has ended: it leaves the ledger
-- lease_i   hash    see start_run.lua; while task i runs, and until redispatch_ms after its retry is due, it is not
--                   overdue. The ledger may not know of the retry: the task may have been sent again, or listed for the
--                   first time, after it had started
--
-- A task whose message seems to wait (waits_i is "1") is not overdue either. But that may be a mistake: a task that was
-- sent once and has waited for max_wait_ms is sent again.
--
-- Returns [task_id, retries] of the tasks that must be sent again, with the number of the try that is due.

-- include: server_ms
-- include: integer
-- include: in_flight

local FIRST, PER_TASK = 3, 2 -- in KEYS and in ARGV

local inflight, tasks = KEYS[1], KEYS[2]
local redispatch_ms, max_wait_ms = tonumber(ARGV[1]), tonumber(ARGV[2])

local now_ms = server_ms()

-- sent_ms, task: what the ledger lists; nil if the task is no longer listed.
local function may_wait(sent_ms, task, until_ms)
    if not sent_ms or until_ms and tonumber(until_ms) > tonumber(sent_ms) then
        return false -- a worker got the message, and died while it ran the task
    end
    return now_ms - sent_ms < max_wait_ms or task.redispatches > 0
end

local send_again = {}
for i = FIRST, #KEYS, PER_TASK do
    local done, lease, task_id, waits = KEYS[i], KEYS[i + 1], ARGV[i], ARGV[i + 1] == "1"
    local until_ms, due, at_ms = unpack(redis.call("HMGET", lease, "until_ms", "retries", "at_ms"))
    local retry_ms = at_ms and tonumber(at_ms) + redispatch_ms
    local sent_ms, json = parse_in_flight(redis.call("HGET", tasks, task_id) or "")
    local task = json and cjson.decode(json)
    if redis.call("EXISTS", done) == 1 then
        redis.call("ZREM", inflight, task_id)
        redis.call("HDEL", tasks, task_id)
    elseif until_ms and tonumber(until_ms) > now_ms or waits and may_wait(sent_ms, task, until_ms) then
        redis.call("ZADD", inflight, "XX", integer(now_ms + redispatch_ms), task_id)
    elseif retry_ms and retry_ms > now_ms then
        redis.call("ZADD", inflight, "XX", integer(retry_ms), task_id)
    else
        send_again[#send_again + 1] = {task_id, math.max(tonumber(due or 0), task and task.retries or 0)}
    end
end
return send_again
