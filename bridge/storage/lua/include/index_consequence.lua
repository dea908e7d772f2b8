-- Index an event, which the journal has as `entry`, under the event that caused it or the id of its chain.
--
-- Of an id that is used for years, such as that of a tenant, the index keeps what is younger than ttl_ms, and at most
-- MAX_INDEXED events, as in journal.py: further ones are left out until others are old enough. An index that is larger is one of an
-- older version, which kept everything. It is removed without blocking the server.
-- pcall: only operators read the index; a key of another type there must not cost the event.
local MAX_INDEXED, MAX_UNCHECKED = 1000, 50

local function index_consequence(consequences, ttl_ms, event_id, entry)
    local ms = string.match(entry, "^%d+")
    local indexed = tonumber(redis.pcall("ZCARD", consequences)) or 0
    if indexed > MAX_INDEXED then
        redis.pcall("UNLINK", consequences)
    elseif indexed >= MAX_UNCHECKED then
        redis.pcall("ZREMRANGEBYSCORE", consequences, "-inf", string.format("(%.0f", ms - ttl_ms))
        if indexed == MAX_INDEXED and redis.pcall("ZCARD", consequences) == MAX_INDEXED then
            return
        end
    end
    redis.pcall("ZADD", consequences, ms, event_id)
    redis.pcall("PEXPIRE", consequences, ttl_ms)
end
