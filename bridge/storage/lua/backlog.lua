-- backlog(keys=[journal], args=[max_count])
--
-- journal  stream
--
-- Returns [now_ms, entries, first, last, group_1, group_2, ...]: the stream ids of the first and the last entry, and for
-- each group [name, last_delivered, pending, undelivered, exact, oldest]. Before Redis 7, and after some deletions, the
-- server does not know how many entries are undelivered. Then up to max_count are counted, and exact is 0 if there are
-- more. oldest is the id of the oldest entry that is not delivered or not acknowledged; empty when all are.

-- include: server_ms
-- include: integer
-- include: fields_of

local journal, max_count = KEYS[1], tonumber(ARGV[1])

local now_ms = integer(server_ms())
if redis.call("EXISTS", journal) == 0 then
    return {now_ms, 0, "", ""}
end

local function first_id(entries)
    return entries[1] and entries[1][1] or ""
end

local reply = {now_ms, redis.call("XLEN", journal), first_id(redis.call("XRANGE", journal, "-", "+", "COUNT", 1)),
               first_id(redis.call("XREVRANGE", journal, "+", "-", "COUNT", 1))}
for _, info in ipairs(redis.call("XINFO", "GROUPS", journal)) do
    local group = fields_of(info)
    local after = "(" .. group["last-delivered-id"]
    local undelivered, exact = group["lag"], 1
    if not undelivered then
        undelivered = #redis.call("XRANGE", journal, after, "+", "COUNT", max_count + 1)
        if undelivered > max_count then
            undelivered, exact = max_count, 0
        end
    end
    local oldest = redis.call("XPENDING", journal, group["name"])[2]
    if not oldest then
        oldest = first_id(redis.call("XRANGE", journal, after, "+", "COUNT", 1))
    end
    reply[#reply + 1] = {group["name"], group["last-delivered-id"], group["pending"], undelivered, exact, oldest}
end
return reply
