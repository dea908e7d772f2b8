-- acknowledge_sent(keys=[journal, inflight, tasks, fencing_token, done_1 .. done_n],
--                  args=[group, redispatch_ms, token, acknowledged, entry_1 .. entry_m,
--                        then for each task: task_id, delay_ms, task])
--
-- The transition to the state sent, see ledger.py.
--
-- journal        stream  its m = acknowledged entries are acknowledged for the group
-- inflight       zset    task id -> when the task is overdue, ms: redispatch_ms after it was sent, plus its delay
-- tasks          hash    task id -> what was sent, see include/in_flight.lua
-- fencing_token  counter  must be token, or be missing if token is empty, when entries are acknowledged. Otherwise they
--                         may belong to another consumer, or be for handlers that have joined since
-- done_i         string  exists when task i has ended, which may be before this call: then it is not listed
--
-- Returns 1, or 0 if nothing was done because the fencing token has advanced.
--
-- Entries are acknowledged and tasks listed in one step: before it the journal is responsible for the messages, after
-- it the ledger. The first write needs no memory, and changes nothing. A Redis without memory refuses a script at its
-- first write or never, and a message that the broker has must be recorded, or it would be sent again and again until
-- there is memory.

-- include: server_ms
-- include: integer
-- include: in_flight

local CHUNK = 1000 -- Lua's stack has room for some thousand arguments
local FIRST_ENTRY, FIRST_DONE, PER_TASK = 5, 5, 3

local journal, inflight, tasks, fencing_token = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local group, redispatch_ms, token, acknowledged = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])

if acknowledged > 0 and (redis.call("GET", fencing_token) or "") ~= token then
    return 0
end

local now_ms = server_ms()
local sent_ms = integer(now_ms)
redis.call("ZREM", inflight, "")
local last_entry = FIRST_ENTRY + acknowledged - 1
for first = FIRST_ENTRY, last_entry, CHUNK do
    redis.call("XACK", journal, group, unpack(ARGV, first, math.min(first + CHUNK - 1, last_entry)))
end

for first = FIRST_DONE, #KEYS, CHUNK do
    local last = math.min(first + CHUNK - 1, #KEYS)
    local ended = redis.call("MGET", unpack(KEYS, first, last))
    local gone, records, scores = {}, {}, {}
    for i = first, last do
        local at = last_entry + 1 + PER_TASK * (i - FIRST_DONE)
        local task_id, delay_ms, task = ARGV[at], ARGV[at + 1], ARGV[at + 2]
        if ended[i - first + 1] then
            gone[#gone + 1] = task_id
        else
            records[#records + 1] = task_id
            records[#records + 1] = format_in_flight(sent_ms, task)
            scores[#scores + 1] = integer(now_ms + redispatch_ms + delay_ms)
            scores[#scores + 1] = task_id
        end
    end
    if #gone > 0 then
        redis.call("ZREM", inflight, unpack(gone))
        redis.call("HDEL", tasks, unpack(gone))
    end
    if #records > 0 then
        redis.call("HSET", tasks, unpack(records))
        redis.call("ZADD", inflight, unpack(scores))
    end
end
return 1
