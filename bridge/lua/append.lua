-- append(keys=[journal, seen_1 .. seen_n],
--        args=[dedup_ttl_ms, then for each event: digest, id, type, event])
--
-- journal  stream  one entry per event: id, type, event (the JSON)
-- seen_i   string  "<digest>:<attempt>" of the first event with this id, expires after dedup_ttl_ms
--
-- Returns for each event: 1 appended, 0 a repetition of one already there, -1 the id is taken by an event with
-- another type or payload. An error stops at that event; calling again is safe, the earlier ones are then seen.

local outcome = {}
for i = 1, #KEYS - 1 do
    local seen, base = KEYS[i + 1], 4 * i - 2
    local digest = ARGV[base]
    local first = redis.call("GET", seen)
    if not first then
        redis.call("XADD", KEYS[1], "*", "id", ARGV[base + 1], "type", ARGV[base + 2], "event", ARGV[base + 3])
        redis.call("SET", seen, digest .. ":", "PX", ARGV[1])
        outcome[i] = 1
    elseif string.sub(first, 1, #digest + 1) == digest .. ":" then
        outcome[i] = 0
    else
        outcome[i] = -1
    end
end
return outcome
