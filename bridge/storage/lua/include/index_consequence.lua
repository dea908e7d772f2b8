-- Index an event, which the journal has as `entry`, under the event that caused it or the id of its chain.
-- pcall: only operators read the index; a key of another type there must not cost the event.
local function index_consequence(consequences, ttl_ms, event_id, entry)
    redis.pcall("ZADD", consequences, string.match(entry, "^%d+"), event_id)
    redis.pcall("PEXPIRE", consequences, ttl_ms)
end
