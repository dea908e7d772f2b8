-- replay(keys=[journal, progress, dead, dead_size, inflight, tasks, then for each of n events: replays, done],
--        args=[from, to, ttl_ms, skipped, finished, group, name,
--              then for each of n events: dead_letter, id, type, event, handler, task_id])
--
-- journal    stream  gets one entry per event: id, type, event (the JSON), group, and handler unless it is empty
-- progress   hash    cursor: where the source is read next; replayed, skipped: counts; finished: "1" at the end
-- dead       stream  loses the entry `dead_letter`, unless that is empty, in the step that appends its event. The event
--                    of a dead letter that no longer exists is not appended
-- dead_size  hash    bytes, entries: less what the dead letters held, see write_dead_letter.lua
-- inflight, tasks    lose the task of the dead letter, `task_id`, unless that is empty, see start_run.lua
-- replays    zset    name of each replay of the event -> when it was, ms
-- done       string  of that task. If the task was given up, its message may still arrive: the mark written here stops it.
--                    If the task has ended since in another way, the dead letter is obsolete, and is only deleted
--
-- Events, cursor and counts move in one step, from cursor `from` to cursor `to`. Returns {replayed, skipped} so far,
-- also when the step was done by an earlier call; nil when the cursor is elsewhere, because another process runs this
-- replay.

-- include: bytes_of
-- include: drop_dead_letter

local FIRST_EVENT, PER_EVENT = 8, 6
local FIRST_EVENT_KEY, KEYS_PER_EVENT = 7, 2

local journal, progress, dead, dead_size, inflight, tasks = unpack(KEYS, 1, FIRST_EVENT_KEY - 1)
local from, to, ttl_ms, skipped = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local finished, group, name = ARGV[5], ARGV[6], ARGV[7]

local cursor = redis.call("HGET", progress, "cursor")
if cursor == to and cursor ~= from then
    return redis.call("HMGET", progress, "replayed", "skipped")
elseif cursor ~= from then
    return false
end

local replayed = 0
for i = 1, (#ARGV - FIRST_EVENT + 1) / PER_EVENT do
    local at, key = FIRST_EVENT + PER_EVENT * (i - 1), FIRST_EVENT_KEY + KEYS_PER_EVENT * (i - 1)
    local dead_letter, id, event_type, event, handler, task_id = unpack(ARGV, at, at + PER_EVENT - 1)
    local replays, done = KEYS[key], KEYS[key + 1]
    local exists = dead_letter ~= "" and #redis.call("XRANGE", dead, dead_letter, dead_letter) == 1
    local mark = task_id ~= "" and redis.call("GET", done)
    if dead_letter == "" or exists and (not mark or string.match(mark, "^%S+") == dead_letter) then
        local fields = {"id", id, "type", event_type, "event", event, "group", group}
        if handler ~= "" then
            fields[9], fields[10] = "handler", handler
        end
        local entry = redis.call("XADD", journal, "*", unpack(fields))
        redis.call("ZADD", replays, string.match(entry, "^%d+"), name)
        redis.call("PEXPIRE", replays, ttl_ms)
        if task_id ~= "" and not mark then
            redis.call("SET", done, dead_letter .. " -1 ", "PX", ttl_ms)
            redis.call("ZREM", inflight, task_id)
            redis.call("HDEL", tasks, task_id)
        end
        replayed = replayed + 1
    elseif exists then
        skipped = skipped + 1
    end
    if exists then
        drop_dead_letter(dead, dead_size, dead_letter)
    end
end
redis.call("HSET", progress, "cursor", to, "finished", finished)
redis.call("HINCRBY", progress, "replayed", replayed)
redis.call("HINCRBY", progress, "skipped", skipped)
redis.call("PEXPIRE", progress, ttl_ms)
return redis.call("HMGET", progress, "replayed", "skipped")
