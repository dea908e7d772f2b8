-- replay(keys=[journal, progress, dead, dead_size, replays_1 .. replays_n],
--        args=[from, to, ttl_ms, skipped, finished, group, name,
--              then for each of n events: dead_letter, id, type, event, handler])
--
-- journal    stream  gets one entry per event: id, type, event (the JSON), group, and handler unless it is empty
-- progress   hash    cursor: where the source is read next; replayed, skipped: counts; finished: "1" at the end
-- dead       stream  loses the entry `dead_letter`, unless that is empty, in the step that appends its event. The event
--                    of a dead letter that no longer exists is not appended
-- dead_size  hash    bytes: less what the dead letters held, see write_dead_letter.lua
-- replays_i  zset    name of each replay of event i -> when it was, ms
--
-- Events, cursor and counts move in one step, from cursor `from` to cursor `to`. Returns {replayed, skipped} so far,
-- also when the step was done by an earlier call; nil when the cursor is elsewhere, because another process runs this
-- replay.

-- include: bytes_of
-- include: integer

local FIRST_EVENT, PER_EVENT = 8, 5

local journal, progress, dead, dead_size = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local from, to, ttl_ms, skipped = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local finished, group, name = ARGV[5], ARGV[6], ARGV[7]

local cursor = redis.call("HGET", progress, "cursor")
if cursor == to and cursor ~= from then
    return redis.call("HMGET", progress, "replayed", "skipped")
elseif cursor ~= from then
    return false
end

local replayed, bytes = 0, 0
for i = 1, (#ARGV - FIRST_EVENT + 1) / PER_EVENT do
    local at = FIRST_EVENT + PER_EVENT * (i - 1)
    local dead_letter, id, event_type, event, handler = unpack(ARGV, at, at + PER_EVENT - 1)
    local rows = dead_letter ~= "" and redis.call("XRANGE", dead, dead_letter, dead_letter)
    if not rows or #rows == 1 then
        local fields = {"id", id, "type", event_type, "event", event, "group", group}
        if handler ~= "" then
            fields[9], fields[10] = "handler", handler
        end
        local entry = redis.call("XADD", journal, "*", unpack(fields))
        local replays = KEYS[4 + i]
        redis.call("ZADD", replays, string.match(entry, "^%d+"), name)
        redis.call("PEXPIRE", replays, ttl_ms)
        replayed = replayed + 1
    end
    if rows and #rows == 1 then
        redis.call("XDEL", dead, dead_letter)
        bytes = bytes + bytes_of(rows[1][2])
    end
end
if bytes > 0 and redis.call("HEXISTS", dead_size, "bytes") == 1 then
    redis.call("HINCRBY", dead_size, "bytes", integer(-bytes))
end
redis.call("HSET", progress, "cursor", to, "finished", finished)
redis.call("HINCRBY", progress, "replayed", replayed)
redis.call("HINCRBY", progress, "skipped", skipped)
redis.call("PEXPIRE", progress, ttl_ms)
return redis.call("HMGET", progress, "replayed", "skipped")
