-- release(keys=[lease, inflight, tasks], args=[task_id, token, redispatch_ms, delay_ms])
--
-- The transition from running to retrying, see ledger.py.
--
-- lease     hash  see start_run.lua; deleted if it is of this token
-- inflight  zset  task id -> when the task is overdue, ms
-- tasks     hash  task id -> what was sent, see include/in_flight.lua
--
-- For a run that is over while its task is not: a retry was sent, which starts in delay_ms.

-- include: server_ms
-- include: integer
-- include: in_flight

local lease, inflight, tasks = KEYS[1], KEYS[2], KEYS[3]
local task_id, token, redispatch_ms, delay_ms = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])

if redis.call("HGET", lease, "token") == token then
    redis.call("DEL", lease)
end
local record = redis.call("HGET", tasks, task_id)
if record then
    local now_ms = server_ms()
    local _, json = parse_in_flight(record)
    local task = cjson.decode(json)
    task.retried = true
    redis.call("HSET", tasks, task_id, format_in_flight(integer(now_ms), cjson.encode(task)))
    redis.call("ZADD", inflight, integer(now_ms + redispatch_ms + delay_ms), task_id)
end
