-- replay(keys=[journal, progress, dead, dead_size, replays_1 .. replays_n],
--        args=[from, to, ttl_ms, skipped, finished, group, name,
--              then for each of n events: letter, id, type, event, handler])
--
-- journal    stream  gets one entry per event: id, type, event (the JSON), group, and handler unless it is empty
-- progress   hash    cursor: where the source is read next; replayed, skipped: counts; finished: "1" at the end
-- dead       stream  the entry `letter`, unless empty, goes as its event is appended; one that is gone already stays out
-- dead_size  hash    bytes: less what it held, see park.lua
-- replays_i  zset    name of each replay of event i -> when it was, ms
--
-- Events, cursor and counts move in one step, from cursor `from` to cursor `to`. Returns {replayed, skipped} so far,
-- also when the step was done before; nil when the replay is elsewhere, as when another process is at it.

local cursor = redis.call("HGET", KEYS[2], "cursor")
if cursor == ARGV[2] and cursor ~= ARGV[1] then
    return redis.call("HMGET", KEYS[2], "replayed", "skipped")
elseif cursor ~= ARGV[1] then
    return false
end

local replayed, bytes = 0, 0
for i = 8, #ARGV, 5 do
    local letter = ARGV[i]
    local rows = letter ~= "" and redis.call("XRANGE", KEYS[3], letter, letter)
    if not rows or #rows == 1 then
        local fields = {"id", ARGV[i + 1], "type", ARGV[i + 2], "event", ARGV[i + 3], "group", ARGV[6]}
        if ARGV[i + 4] ~= "" then
            fields[9], fields[10] = "handler", ARGV[i + 4]
        end
        local entry = redis.call("XADD", KEYS[1], "*", unpack(fields))
        local replays = KEYS[5 + (i - 8) / 5]
        redis.call("ZADD", replays, string.match(entry, "^%d+"), ARGV[7])
        redis.call("PEXPIRE", replays, ARGV[3])
        replayed = replayed + 1
    end
    if rows and #rows == 1 then
        redis.call("XDEL", KEYS[3], letter)
        for j = 2, #rows[1][2], 2 do
            bytes = bytes + #rows[1][2][j]
        end
    end
end
if bytes > 0 and redis.call("HEXISTS", KEYS[4], "bytes") == 1 then
    redis.call("HINCRBY", KEYS[4], "bytes", string.format("%.0f", -bytes))
end
redis.call("HSET", KEYS[2], "cursor", ARGV[2], "finished", ARGV[5])
redis.call("HINCRBY", KEYS[2], "replayed", replayed)
redis.call("HINCRBY", KEYS[2], "skipped", ARGV[4])
redis.call("PEXPIRE", KEYS[2], ARGV[3])
return redis.call("HMGET", KEYS[2], "replayed", "skipped")
