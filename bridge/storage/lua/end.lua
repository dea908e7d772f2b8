-- end(keys=[done, lease, inflight, tasks], args=[task_id, mark, done_ttl_ms])
--
-- The transition from running to ended, see ledger.py, without a dead letter.
--
-- done      string  gets the mark of the task, see Ended in in_flight.py; expires after done_ttl_ms
-- lease     hash    deleted
-- inflight  zset    loses the task
-- tasks     hash    loses the task
--
-- The mark comes first because it needs memory: a Redis without memory refuses a script at its first write or never.

local done, lease, inflight, tasks = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local task_id, mark, done_ttl_ms = ARGV[1], ARGV[2], ARGV[3]

redis.call("SET", done, mark, "PX", done_ttl_ms)
redis.call("DEL", lease)
redis.call("ZREM", inflight, task_id)
redis.call("HDEL", tasks, task_id)
