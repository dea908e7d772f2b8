-- sent(keys=[journal, inflight, pairs, done_1 .. done_n],
--      args=[group, redispatch_ms, acknowledged, entry_1 .. entry_m, then for each task: task_id, delay_ms, pair])
--
-- journal   stream  its m = acknowledged entries are acknowledged for the group
-- inflight  zset    task id -> when the task is overdue, ms: redispatch_ms after it was sent, plus its delay
-- pairs     hash    task id -> "<sent_ms> <pair>"; pair is JSON, see ledger.py
-- done_i    string  exists when task i has ended, which may be before this call: then it is not listed
--
-- Acknowledging and listing are one step: until then the journal answers for the messages, from then on the ledger.
-- XACK comes first because Redis refuses a script for want of memory at its first write or not at all, and XACK needs
-- none: what is at the broker must be noted, or it would be sent again and again until there is memory.

local AT_ONCE = 1000 -- Lua's stack has room for some thousand arguments

local now = redis.call("TIME")
local now_ms = tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000)
local acknowledged = tonumber(ARGV[3])
for first = 4, 3 + acknowledged, AT_ONCE do
    redis.call("XACK", KEYS[1], ARGV[1], unpack(ARGV, first, math.min(first + AT_ONCE - 1, 3 + acknowledged)))
end

-- string.format: numbers beyond 2^31 would be printed in exponent form
local sent = string.format("%.0f ", now_ms)
for first = 4, #KEYS, AT_ONCE do
    local last = math.min(first + AT_ONCE - 1, #KEYS)
    local ended = redis.call("MGET", unpack(KEYS, first, last))
    local gone, texts, scores = {}, {}, {}
    for i = first, last do
        local base = 3 + acknowledged + 3 * (i - 4)
        local task_id = ARGV[base + 1]
        if ended[i - first + 1] then
            gone[#gone + 1] = task_id
        else
            texts[#texts + 1] = task_id
            texts[#texts + 1] = sent .. ARGV[base + 3]
            scores[#scores + 1] = string.format("%.0f", now_ms + ARGV[2] + ARGV[base + 2])
            scores[#scores + 1] = task_id
        end
    end
    if #gone > 0 then
        redis.call("ZREM", KEYS[2], unpack(gone))
        redis.call("HDEL", KEYS[3], unpack(gone))
    end
    if #texts > 0 then
        redis.call("HSET", KEYS[3], unpack(texts))
        redis.call("ZADD", KEYS[2], unpack(scores))
    end
end
