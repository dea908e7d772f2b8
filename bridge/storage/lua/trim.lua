-- trim(keys=[journal], args=[retention_ms, max_entries])
--
-- journal  stream; loses entries that are older than retention_ms by the clock of the server, the oldest first. At most
--          max_entries of them, so that one call never blocks the server for long
--
-- Returns [removed, more, group_1, lost_1, group_2, lost_2, ...]: how many entries were removed; 1 if older ones remain;
-- and for each group how many of the removed entries it had not acknowledged, apart from replays for other groups.
-- Their events are lost to that group. Those that were pending are acknowledged, so that no consumer reads an entry
-- that no longer exists.

-- include: server_ms
-- include: integer
-- include: fields_of

local journal = KEYS[1]
local retention_ms, max_entries = tonumber(ARGV[1]), tonumber(ARGV[2])

local function parts(id)
    local ms, sequence = string.match(id, "^(%d+)-(%d+)$")
    return tonumber(ms), tonumber(sequence)
end

local function after(a, b)
    local a_ms, a_sequence = parts(a)
    local b_ms, b_sequence = parts(b)
    return a_ms > b_ms or (a_ms == b_ms and a_sequence > b_sequence)
end

local function is_for(entry, group)
    local addressed = fields_of(entry[2])["group"]
    return not addressed or addressed == group
end

local horizon_ms = server_ms() - retention_ms
if horizon_ms <= 0 then
    return {0, 0}
end
local old = redis.call("XRANGE", journal, "-", "(" .. integer(horizon_ms) .. "-0", "COUNT", max_entries)
if #old == 0 then
    return {0, 0}
end
local last = old[#old][1]

local reply = {0, #old == max_entries and 1 or 0}
for _, info in ipairs(redis.call("XINFO", "GROUPS", journal)) do
    local group = fields_of(info)
    local pending = redis.call("XPENDING", journal, group["name"], "-", last, max_entries)
    for _, entry in ipairs(pending) do
        redis.call("XACK", journal, group["name"], entry[1])
    end
    local lost = #pending
    for i = #old, 1, -1 do
        if not after(old[i][1], group["last-delivered-id"]) then
            break
        end
        if is_for(old[i], group["name"]) then
            lost = lost + 1
        end
    end
    reply[#reply + 1] = group["name"]
    reply[#reply + 1] = lost
end

local last_ms, last_sequence = parts(last)
reply[1] = redis.call("XTRIM", journal, "MINID", integer(last_ms) .. "-" .. integer(last_sequence + 1))
return reply
