-- trim(keys=[journal], args=[retention_ms, max_entries])
--
-- journal  stream; entries older than retention_ms by the clock of the server are removed, at most max_entries
--          of them, oldest first, so that one call never holds the server for long
--
-- Returns [removed, more, group_1, lost_1, group_2, lost_2, ...]: how many entries went, 1 if older ones remain,
-- and for each group how many of the removed it had not acknowledged, replays for other groups aside. Those events
-- are lost to that group; the ones it held are acknowledged, so that no consumer stumbles over them.

local function parts(id)
    local ms, seq = string.match(id, "^(%d+)-(%d+)$")
    return tonumber(ms), tonumber(seq)
end

local function after(a, b)
    local a_ms, a_seq = parts(a)
    local b_ms, b_seq = parts(b)
    return a_ms > b_ms or (a_ms == b_ms and a_seq > b_seq)
end

local function is_for(entry, group)
    for i = 1, #entry[2], 2 do
        if entry[2][i] == "group" then
            return entry[2][i + 1] == group
        end
    end
    return true
end

local now = redis.call("TIME")
local horizon = (tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000)) - tonumber(ARGV[1])
local max_entries = tonumber(ARGV[2])
if horizon <= 0 then
    return {0, 0}
end
-- string.format: numbers beyond 2^31 would be printed in exponent form
local old = redis.call("XRANGE", KEYS[1], "-", "(" .. string.format("%.0f", horizon) .. "-0", "COUNT", max_entries)
if #old == 0 then
    return {0, 0}
end
local last = old[#old][1]

local reply = {0, #old == max_entries and 1 or 0}
for _, info in ipairs(redis.call("XINFO", "GROUPS", KEYS[1])) do
    local group = {}
    for i = 1, #info, 2 do
        group[info[i]] = info[i + 1]
    end
    local pending = redis.call("XPENDING", KEYS[1], group["name"], "-", last, max_entries)
    for _, entry in ipairs(pending) do
        redis.call("XACK", KEYS[1], group["name"], entry[1])
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

local last_ms, last_seq = parts(last)
reply[1] = redis.call("XTRIM", KEYS[1], "MINID", string.format("%.0f-%.0f", last_ms, last_seq + 1))
return reply
