-- backlog(keys=[journal], args=[max_count])
--
-- journal  stream
--
-- Returns [now_ms, entries, first, last, group_1, group_2, ...]: the stream ids of the first and the last entry, and for
-- each group [name, last_delivered, pending, undelivered, exact, oldest]. Where the server does not know how many entries are
-- undelivered, as before Redis 7, up to max_count are counted, and exact is 0 if there are more. oldest is the id of the
-- oldest entry that was not acknowledged or not delivered, "" when there is none.

local now = redis.call("TIME")
local now_ms = string.format("%.0f", tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000))
if redis.call("EXISTS", KEYS[1]) == 0 then
    return {now_ms, 0, "", ""}
end

local function id_of(entries)
    return entries[1] and entries[1][1] or ""
end

local reply = {now_ms, redis.call("XLEN", KEYS[1]), id_of(redis.call("XRANGE", KEYS[1], "-", "+", "COUNT", 1)),
               id_of(redis.call("XREVRANGE", KEYS[1], "+", "-", "COUNT", 1))}
for _, info in ipairs(redis.call("XINFO", "GROUPS", KEYS[1])) do
    local group = {}
    for i = 1, #info, 2 do
        group[info[i]] = info[i + 1]
    end
    local after = "(" .. group["last-delivered-id"]
    local undelivered, exact = group["lag"], 1
    if not undelivered then
        undelivered = #redis.call("XRANGE", KEYS[1], after, "+", "COUNT", ARGV[1] + 1)
        if undelivered > tonumber(ARGV[1]) then
            undelivered, exact = tonumber(ARGV[1]), 0
        end
    end
    local oldest = redis.call("XPENDING", KEYS[1], group["name"])[2]
    if not oldest then
        oldest = id_of(redis.call("XRANGE", KEYS[1], after, "+", "COUNT", 1))
    end
    reply[#reply + 1] = {group["name"], group["last-delivered-id"], group["pending"], undelivered, exact, oldest}
end
return reply
