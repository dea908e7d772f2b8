-- trim(keys=[journal, group_settings, journal_start], args=[own_event_ttl_ms, max_entries, max_bytes])
--
-- journal         stream  loses old entries by the clock of the server, the oldest first
-- group_settings  hash    group -> its settings, see group_settings.py. Loses what an operator wrote when its time is over
-- journal_start   string  "<first> <undone> <removed>" after the last call: the first entry, or "-"; the first one that a
--                         group had not acknowledged; and how many were ever removed, 0 before Redis 7. It is deleted
--                         when the journal is replaced
--
-- An entry is old when it exceeds the longest event_ttl of all groups of the journal, so no group loses what it has yet
-- to read because another group keeps events for a shorter time. A group without settings is of an older version, and
-- own_event_ttl_ms counts for it.
--
-- Returns [removed, more, cut, group_1, lost_1, group_2, lost_2, ...]: how many entries were removed; 1 if older ones
-- remain; `undone` of the last call if another program has removed entries since then, else empty: `first` is missing,
-- although it is not old, or there was no entry, and some have been added and removed;
-- and for each group how many of the removed entries it had not acknowledged, apart from replays for other groups.
-- Their events are lost to that group. Those that were pending are acknowledged, so that no consumer reads an entry
-- that no longer exists.
--
-- One call removes about max_entries at most, so that it never blocks the server for long. An entry may have a megabyte:
-- entries that all groups have read are removed unread. The others have to be read, because only their fields show for
-- which group they are, but one at a time, and at most max_bytes of them, plus one entry.

-- include: server_ms
-- include: integer
-- include: fields_of
-- include: bytes_of
-- include: longest_ms
-- include: id_before

local MAX_EXACT = 2 ^ 53 -- larger numbers are not exact in Lua

local journal, group_settings, journal_start = KEYS[1], KEYS[2], KEYS[3]
local own_event_ttl_ms, max_entries, max_bytes = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])

local function parts(id)
    local ms, sequence = string.match(id, "^(%d+)-(%d+)$")
    return tonumber(ms), tonumber(sequence)
end

local function next_id(id)
    local ms, sequence = parts(id)
    if sequence >= MAX_EXACT then
        return integer(ms + 1) .. "-0"
    end
    return integer(ms) .. "-" .. integer(sequence + 1)
end

local function first(from, to)
    return redis.call("XRANGE", journal, from, to, "COUNT", 1)[1]
end

local groups = {}
if redis.call("EXISTS", journal) == 1 then
    for i, info in ipairs(redis.call("XINFO", "GROUPS", journal)) do
        local group = fields_of(info)
        groups[i] = {name = group["name"], unread = next_id(group["last-delivered-id"]), lost = 0}
    end
end

local now_ms = server_ms()
local rows = #groups == 0 and {false} or {}
for _, group in ipairs(groups) do
    rows[#rows + 1] = redis.call("HGET", group_settings, group.name)
    local retained = redis.call("HGET", group_settings, "retained:" .. group.name)
    if retained and tonumber(string.match(retained, "%d+$") or 0) > now_ms then
        rows[#rows + 1] = retained
    elseif retained then
        redis.call("HDEL", group_settings, "retained:" .. group.name)
    end
end
local horizon_ms = now_ms - longest_ms(rows, 1, own_event_ttl_ms)
if horizon_ms <= 0 then
    return {0, 0, ""}
end

local function removed_ever()
    local info = #groups > 0 and fields_of(redis.call("XINFO", "STREAM", journal)) or {}
    return info["entries-added"] and info["entries-added"] - info["length"] or 0
end

local function undone_if_cut()
    local first_id, undone, removed = string.match(redis.call("GET", journal_start) or "", "^(%S+) (%S+) (%d+)$")
    if not first_id or #groups == 0 then
        return ""
    end
    local cut
    if first_id == "-" then
        cut = removed_ever() > tonumber(removed)
    else
        cut = parts(first_id) >= horizon_ms and not first(first_id, first_id)
    end
    return cut and undone or ""
end
local cut = undone_if_cut()

-- All ids that follow are the first one that stays.
local stays, more = integer(horizon_ms) .. "-0", false
for _, group in ipairs(groups) do
    group.pending = redis.call("XPENDING", journal, group.name, "-", "(" .. stays, max_entries)
    if #group.pending == max_entries then
        stays, more = next_id(group.pending[max_entries][1]), true
    end
end

local all_read = stays
for _, group in ipairs(groups) do
    if id_before(group.unread, all_read) then
        all_read = group.unread
    end
end

-- Without a limit Redis removes exactly what is old, with one only whole blocks of entries.
local removed = redis.call("XTRIM", journal, "MINID", "~", all_read, "LIMIT", max_entries)
if 2 * removed > max_entries then
    more = true
    local rest = first("-", "+")
    stays = rest and rest[1] or stays
else
    removed = removed + redis.call("XTRIM", journal, "MINID", all_read)
    local last, read, bytes = nil, 0, 0
    local entry = first("-", "(" .. stays)
    while entry and read < max_entries and bytes < max_bytes do
        local addressed = fields_of(entry[2])["group"]
        for _, group in ipairs(groups) do
            if not id_before(entry[1], group.unread) and (not addressed or addressed == group.name) then
                group.lost = group.lost + 1
            end
        end
        last, read, bytes = entry[1], read + 1, bytes + bytes_of(entry[2])
        entry = first("(" .. last, "(" .. stays)
    end
    if entry then
        more, stays = true, next_id(last)
    end
    if last then
        removed = removed + redis.call("XTRIM", journal, "MINID", stays)
    end
end

local reply = {removed, more and 1 or 0, cut}
for _, group in ipairs(groups) do
    for _, pending in ipairs(group.pending) do
        if id_before(pending[1], stays) then
            group.lost = group.lost + redis.call("XACK", journal, group.name, pending[1])
        end
    end
    reply[#reply + 1] = group.name
    reply[#reply + 1] = group.lost
end

local entry, undone = first("-", "+"), nil
for _, group in ipairs(groups) do
    local not_acknowledged = redis.call("XPENDING", journal, group.name)[2] or group.unread
    undone = undone and id_before(undone, not_acknowledged) and undone or not_acknowledged
end
local start = undone and (entry and entry[1] or "-") .. " " .. undone .. " " .. integer(removed_ever()) or ""
redis.call("SET", journal_start, start)
return reply
