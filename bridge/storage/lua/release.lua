-- release(keys=[lease, inflight, tasks], args=[task_id, token, redispatch_ms, delay_ms, retries, keep_ms])
--
-- The transition from running to retrying, see ledger.py.
--
-- lease     hash  see start_run.lua. It keeps the number of the try that is due, and when, for keep_ms and the delay: so
--                 long an older copy of the message may arrive, and must not start
-- inflight  zset  task id -> when the task is overdue, ms
-- tasks     hash  task id -> what was sent, see include/in_flight.lua
--
-- For a run that is over while its task is not: a message was sent whose try has the number `retries` and starts in
-- delay_ms. Nothing happens if the lease is not of this token: another run has started since, the task has ended, or this
-- is a repetition.

-- include: server_ms
-- include: integer
-- include: in_flight

local lease, inflight, tasks = KEYS[1], KEYS[2], KEYS[3]
local task_id, token, redispatch_ms, delay_ms = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local retries, keep_ms = ARGV[5], tonumber(ARGV[6])

if redis.call("HGET", lease, "token") ~= token then
    return
end
local now_ms = server_ms()
redis.call("HSET", lease, "retries", retries, "at_ms", integer(now_ms + delay_ms))
redis.call("HDEL", lease, "token", "until_ms", "asked_ms", "deaths")
redis.call("PEXPIRE", lease, integer(keep_ms + delay_ms))
local record = redis.call("HGET", tasks, task_id)
if record then
    local _, json = parse_in_flight(record)
    local task = cjson.decode(json)
    task.retries, task.retried = tonumber(retries), true
    redis.call("HSET", tasks, task_id, format_in_flight(integer(now_ms), cjson.encode(task)))
    redis.call("ZADD", inflight, integer(now_ms + redispatch_ms + delay_ms), task_id)
end
