-- append(keys=[journal, seen_1 .. seen_n, then caused and rate keys],
--        args=[dedup_ttl_ms, event_ttl_ms, refill, most, window_ms,
--              then for each event: digest, fingerprint, id, type, event, caused, rate])
--
-- journal  stream  one entry per event: id, type, event (the JSON)
-- seen_i   string  "<digest>:<fingerprint>:<entry>" of the first event with this id, expires after dedup_ttl_ms;
--                  "<digest>:<fingerprint>:limited" of one that was refused because its source had sent too many
-- caused   zset    see publish.lua; an event names the position of its own among the keys, or "" when it has none
-- rate     string  counts new events of one source, expires window_ms after the first; likewise. Once it is at `most`,
--                  further new events of the source are limited. An event that was seen does not count
--
-- With refill "1", for a journal that was deleted, a mark counts only while its entry is in the journal, and then
-- whatever it says: keys are read to find what is missing, not to compare them with what was heard. A new journal may
-- give an entry id of the same millisecond again, so the entry must be that event's. What was limited stays out.
--
-- Returns for each event: 1 appended, 0 a repetition of one already there, -1 the id is taken by an event with
-- another type or payload, -2 limited, or a repetition of one that was. An error stops at that event; calling again is
-- safe, the earlier ones are then seen.

local refill, most = ARGV[3] == "1", tonumber(ARGV[4])
local outcome = {}
for i = 1, (#ARGV - 5) / 7 do
    local seen, base = KEYS[i + 1], 7 * i - 1
    local digest = ARGV[base]
    local first = redis.call("GET", seen)
    if first and refill then
        local entry = string.match(first, ":(%d+-%d+)$")
        local row = entry and redis.call("XRANGE", KEYS[1], entry, entry)[1]
        if entry and not (row and row[2][2] == ARGV[base + 2]) then
            first = false
        end
    end
    if not first then
        local id, type, event = ARGV[base + 2], ARGV[base + 3], ARGV[base + 4]
        local mark = digest .. ":" .. ARGV[base + 1] .. ":"
        local rate = KEYS[tonumber(ARGV[base + 6]) or 0]
        -- pcall: something else at its key limits nobody
        if rate and (tonumber(redis.pcall("GET", rate)) or 0) >= most then
            redis.call("SET", seen, mark .. "limited", "PX", ARGV[1])
            outcome[i] = -2
        else
            local entry = redis.call("XADD", KEYS[1], "*", "id", id, "type", type, "event", event)
            redis.call("SET", seen, mark .. entry, "PX", ARGV[1])
            local caused = KEYS[tonumber(ARGV[base + 5]) or 0]
            if caused then
                redis.pcall("ZADD", caused, string.match(entry, "^%d+"), id)
                redis.pcall("PEXPIRE", caused, ARGV[2])
            end
            if rate and redis.pcall("INCR", rate) == 1 then
                redis.call("PEXPIRE", rate, ARGV[5])
            end
            outcome[i] = 1
        end
    elseif refill then
        outcome[i] = 0
    elseif string.sub(first, 1, #digest + 1) == digest .. ":" then
        outcome[i] = string.sub(first, -8) == ":limited" and -2 or 0
    else
        outcome[i] = -1
    end
end
return outcome
