-- report_worker(keys=[workers], args=[name, report, forget_ms])
--
-- workers  hash  name -> "<now_ms> <report>", see workers.py. Expires forget_ms after the last report of any worker

-- include: server_ms
-- include: integer

local workers = KEYS[1]
local name, report, forget_ms = ARGV[1], ARGV[2], ARGV[3]

redis.call("HSET", workers, name, integer(server_ms()) .. " " .. report)
redis.call("PEXPIRE", workers, forget_ms)
