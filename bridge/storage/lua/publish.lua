-- publish(keys=[journal, seen, then event_key and consequences],
--         args=[digest, attempt, dedup_ttl_ms, event_ttl_ms, id, type, event, channel, event_key, consequences, touch])
--
-- journal       stream  gets one entry: id, type, event (the JSON)
-- seen          string  "<digest>:<attempt>:<entry>" of the first publication of this id; expires after dedup_ttl_ms.
--                       The attempt begins with the fingerprint of the broadcast
-- event_key     string  the JSON; expires after event_ttl_ms. Left out in a cluster, where it is on another server and
--                       was written before
-- consequences  zset    event id -> when the journal took it, ms: the events that the same event caused, or that begin
--                       the same chain. Expires event_ttl_ms after the last of them. Left out when nothing caused this
--                       event
--
-- An optional key is given as its position among the keys; 0: it is left out. channel is where the JSON is broadcast;
-- empty: nowhere. With touch "1", an id that is published again is remembered for dedup_ttl_ms from now on. That is a
-- write, which WAIT needs, because it waits for the last write of its connection; and in a cluster the event key may
-- have been written again.
--
-- Returns 1 when this attempt published the event, also when it did so in an earlier call. When another publication
-- of the same id came first nothing is written: 0 if it had the same type and payload, otherwise -1.
--
-- Redis does not undo what a script wrote before it failed. The journal entry comes first: an error there leaves
-- nothing behind. An error later leaves an event that is dispatched, not one that is marked as seen and lost.

-- include: index_consequence

local journal, seen = KEYS[1], KEYS[2]
local digest, attempt, dedup_ttl_ms, event_ttl_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local id, event_type, event, channel = ARGV[5], ARGV[6], ARGV[7], ARGV[8]
local event_key, consequences = KEYS[tonumber(ARGV[9])], KEYS[tonumber(ARGV[10])]
local touch = ARGV[11] == "1"

local mark = digest .. ":" .. attempt .. ":"
local first = redis.call("GET", seen)
if first then
    if touch then
        redis.call("PEXPIRE", seen, dedup_ttl_ms)
    end
    if string.sub(first, 1, #mark) == mark then
        return 1
    end
    return string.sub(first, 1, #digest + 1) == digest .. ":" and 0 or -1
end
local entry = redis.call("XADD", journal, "*", "id", id, "type", event_type, "event", event)
redis.call("SET", seen, mark .. entry, "PX", dedup_ttl_ms)
if event_key then
    redis.call("SET", event_key, event, "PX", event_ttl_ms)
end
if channel ~= "" then
    redis.call("PUBLISH", channel, event)
end
if consequences then
    index_consequence(consequences, event_ttl_ms, id, entry)
end
return 1
