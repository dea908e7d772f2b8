-- publish(keys=[journal, seen, event_key, caused],
--         args=[digest, attempt, dedup_ttl_ms, event_ttl_ms, id, type, event, channel, event_key, caused, touch])
--
-- journal    stream   one entry per event: id, type, event (the JSON)
-- seen       string   "<digest>:<attempt>:<entry>" of the first publication of this id, expires after dedup_ttl_ms; the
--                    attempt begins with the fingerprint of the broadcast
-- event_key  string   the JSON, expires after event_ttl_ms. Left out in a cluster, where it is on another server and
--                     written before
-- channel    where the JSON is broadcast; empty: nowhere
-- caused     zset     event id -> when it was published, ms: of all that followed from the same event, or began the
--                    same chain; expires with its last event. Left out when this event follows from none
--
-- The arguments event_key and caused are the positions of these two among the keys, 0 when they are left out. With touch
-- "1" an id that is published again is remembered for dedup_ttl_ms from now on, which is a write: for WAIT, which waits for
-- the last one of its connection; and in a cluster, where the event key may have been written anew.
--
-- Returns 1 when this attempt published the event (also when it did so earlier and the reply was lost). When another
-- publication of the same id came first nothing is written: 0 if it had the same type and payload, else -1.
--
-- A script that fails keeps what it wrote. The entry comes first: an error there leaves nothing behind, and an
-- error later leaves an event that is dispatched rather than one that is marked as seen and lost.

local mark = ARGV[1] .. ":" .. ARGV[2] .. ":"
local first = redis.call("GET", KEYS[2])
if first then
    if ARGV[11] == "1" then
        redis.call("PEXPIRE", KEYS[2], ARGV[3])
    end
    if string.sub(first, 1, #mark) == mark then
        return 1
    end
    return string.sub(first, 1, #ARGV[1] + 1) == ARGV[1] .. ":" and 0 or -1
end
local entry = redis.call("XADD", KEYS[1], "*", "id", ARGV[5], "type", ARGV[6], "event", ARGV[7])
redis.call("SET", KEYS[2], mark .. entry, "PX", ARGV[3])
local event_key, caused = KEYS[tonumber(ARGV[9])], KEYS[tonumber(ARGV[10])]
if event_key then
    redis.call("SET", event_key, ARGV[7], "PX", ARGV[4])
end
if ARGV[8] ~= "" then
    redis.call("PUBLISH", ARGV[8], ARGV[7])
end
if caused then
    -- pcall: the index is for people who look; something else at its key costs no event
    redis.pcall("ZADD", caused, string.match(entry, "^%d+"), ARGV[5])
    redis.pcall("PEXPIRE", caused, ARGV[4])
end
return 1
