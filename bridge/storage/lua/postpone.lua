-- postpone(keys=[inflight], args=[task_id, delay_ms])
--
-- inflight  zset  task id -> when the task is overdue, ms. The task, if it is there, is overdue in delay_ms
--
-- ZREM comes first because it needs no memory: without memory, Redis refuses a script at its first write or never.

-- include: server_ms
-- include: integer

local inflight, task_id, delay_ms = KEYS[1], ARGV[1], tonumber(ARGV[2])

if redis.call("ZREM", inflight, task_id) == 1 then
    redis.call("ZADD", inflight, integer(server_ms() + delay_ms), task_id)
end
