-- write_dead_letter(keys=[dead, dead_size, written, then done, lease, inflight, tasks],
--                   args=[dedup_ttl_ms, max_entries, max_bytes, task_id, done_ttl_ms, ended, field_1, value_1, ...])
--
-- dead       stream  one entry per dead letter. The oldest are evicted: it holds at most max_entries, and their values
--                    at most max_bytes together
-- dead_size  hash    bytes: of all values in dead; counted again when it is missing. dropped: dead letters that were
--                    evicted. written: all that were ever written
-- written    string  exists when this dead letter was written, and holds its id; expires after dedup_ttl_ms. Every
--                    subscriber receives the same broken message, and a task that is delivered again fails again: one
--                    dead letter is enough
-- done, lease, inflight, tasks
--                    of the task that leaves the ledger in the same step, see start_run.lua; left out when there is no
--                    task. The task has ended, and its done mark is "<id> <ended>". With done_ttl_ms "0" it has not: it
--                    runs if its message arrives after all
--
-- Returns 1 when the dead letter was written, 0 when it had been written before. One that exceeds max_bytes alone is
-- counted as dropped, and evicts no other. On each path a write that needs memory comes first: a Redis without memory
-- refuses a script at such a write, but not after its first write. So no task ends without its dead letter.

-- include: bytes_of
-- include: integer

local FIRST_FIELD = 7

local dead, dead_size, written = KEYS[1], KEYS[2], KEYS[3]
local done, lease, inflight, tasks = KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local dedup_ttl_ms, max_entries, max_bytes = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local task_id, done_ttl_ms, ended = ARGV[4], ARGV[5], ARGV[6]

local function end_task(id)
    if not done then
        return
    end
    if done_ttl_ms ~= "0" then
        redis.call("SET", done, id .. " " .. ended, "PX", done_ttl_ms)
        redis.call("DEL", lease)
    end
    redis.call("ZREM", inflight, task_id)
    redis.call("HDEL", tasks, task_id)
end

local existing = redis.call("GET", written)
if existing then
    end_task(existing)
    return 0
end
local own_bytes = bytes_of({unpack(ARGV, FIRST_FIELD)})
if own_bytes > max_bytes then
    redis.call("HINCRBY", dead_size, "dropped", 1)
    redis.call("HINCRBY", dead_size, "written", 1)
    redis.call("SET", written, "0-0", "PX", dedup_ttl_ms)
    end_task("0-0")
    return 1
end
local id = redis.call("XADD", dead, "*", unpack(ARGV, FIRST_FIELD))

local entries = redis.call("XLEN", dead)
local bytes = redis.call("HGET", dead_size, "bytes")
if entries > 1 and bytes then
    bytes = bytes + own_bytes
else
    bytes = 0
    for _, entry in ipairs(redis.call("XRANGE", dead, "-", "+")) do
        bytes = bytes + bytes_of(entry[2])
    end
end
local dropped = 0
while entries > 0 and (entries > max_entries or bytes > max_bytes) do
    local oldest = redis.call("XRANGE", dead, "-", "+", "COUNT", 1)[1]
    redis.call("XDEL", dead, oldest[1])
    bytes = bytes - bytes_of(oldest[2])
    entries, dropped = entries - 1, dropped + 1
end
redis.call("HSET", dead_size, "bytes", integer(bytes))
redis.call("HINCRBY", dead_size, "dropped", dropped)
redis.call("HINCRBY", dead_size, "written", 1)
redis.call("SET", written, id, "PX", dedup_ttl_ms)
end_task(id)
return 1
