-- write_dead_letter(keys=[dead, dead_size, written, then done, lease, inflight, tasks],
--                   args=[dedup_ttl_ms, max_entries, max_bytes, task_id, marks_ttl_ms, ended, field_1, value_1, ...])
--
-- dead       stream  one entry per dead letter. The oldest are evicted: it holds at most max_entries, and their values
--                    at most max_bytes together
-- dead_size  hash    bytes: of all values in dead; entries: how many that were. They are counted again when `bytes` is
--                    missing, or if dead has lost entries in another way. dropped: dead letters that were evicted.
--                    written: all that were ever written
-- written    string  exists when this dead letter was written, and holds its id; expires after dedup_ttl_ms. Every
--                    subscriber receives the same broken message, and a task that is delivered again fails again: one
--                    dead letter is enough
-- done, lease, inflight, tasks
--                    of the task whose state changes in the same step, see start_run.lua; left out when there is no
--                    task. Its marks expire after marks_ttl_ms. It has ended, and its done mark is "<id> <ended>". If
--                    `ended` is empty it is given up instead, unless it has ended, runs or was given up meanwhile: it
--                    stays in the ledger with the id of the dead letter until the marks would have expired
--
-- Returns 1 when the dead letter was written, 0 when it had been written before, or the task is not given up. One that
-- exceeds max_bytes alone is counted as dropped, and evicts no other. On each path a write that needs memory comes first:
-- a Redis without memory refuses a script at such a write, but not after its first write. So no task ends without its
-- dead letter.

-- include: bytes_of
-- include: integer
-- include: server_ms
-- include: in_flight

local FIRST_FIELD = 7

local dead, dead_size, written = KEYS[1], KEYS[2], KEYS[3]
local done, lease, inflight, tasks = KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local dedup_ttl_ms, max_entries, max_bytes = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local task_id, marks_ttl_ms, ended = ARGV[4], ARGV[5], ARGV[6]

local giving_up = done and ended == ""
local now_ms = server_ms()
local sent_ms, task -- of a task that is given up

if giving_up then
    local json
    sent_ms, json = parse_in_flight(redis.call("HGET", tasks, task_id) or "")
    task = json and cjson.decode(json)
    local until_ms = tonumber(redis.call("HGET", lease, "until_ms") or 0)
    if not task or given_up(task) or until_ms > now_ms or redis.call("EXISTS", done) == 1 then
        return 0
    end
end

local function settle(id)
    if giving_up then
        task.given_up = id
        redis.call("HSET", tasks, task_id, format_in_flight(sent_ms, cjson.encode(task)))
        redis.call("ZADD", inflight, integer(now_ms + marks_ttl_ms), task_id)
    elseif done then
        redis.call("SET", done, id .. " " .. ended, "PX", marks_ttl_ms)
        redis.call("DEL", lease)
        redis.call("ZREM", inflight, task_id)
        redis.call("HDEL", tasks, task_id)
    end
end

-- What was written before a task ran again counts no more: its dead letter was withdrawn.
local existing = not giving_up and redis.call("GET", written)
if existing then
    settle(existing)
    return 0
end
local own_bytes = bytes_of({unpack(ARGV, FIRST_FIELD)})
if own_bytes > max_bytes then
    redis.call("HINCRBY", dead_size, "dropped", 1)
    redis.call("HINCRBY", dead_size, "written", 1)
    redis.call("SET", written, "0-0", "PX", dedup_ttl_ms)
    settle("0-0")
    return 1
end
local id = redis.call("XADD", dead, "*", unpack(ARGV, FIRST_FIELD))

local entries = redis.call("XLEN", dead)
local bytes, counted = unpack(redis.call("HMGET", dead_size, "bytes", "entries"))
if entries > 1 and bytes and entries > tonumber(counted or 0) then
    bytes = bytes + own_bytes
else
    bytes = 0
    local entry = redis.call("XRANGE", dead, "-", "+", "COUNT", 1)[1]
    while entry do -- one at a time: together they may have max_bytes
        bytes = bytes + bytes_of(entry[2])
        entry = redis.call("XRANGE", dead, "(" .. entry[1], "+", "COUNT", 1)[1]
    end
end
local dropped = 0
while entries > 0 and (entries > max_entries or bytes > max_bytes) do
    local oldest = redis.call("XRANGE", dead, "-", "+", "COUNT", 1)[1]
    redis.call("XDEL", dead, oldest[1])
    bytes = bytes - bytes_of(oldest[2])
    entries, dropped = entries - 1, dropped + 1
end
redis.call("HSET", dead_size, "bytes", integer(bytes), "entries", entries)
redis.call("HINCRBY", dead_size, "dropped", dropped)
redis.call("HINCRBY", dead_size, "written", 1)
redis.call("SET", written, id, "PX", dedup_ttl_ms)
settle(id)
return 1
