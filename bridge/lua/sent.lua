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

local now = redis.call("TIME")
local now_ms = tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000)
local acknowledged = tonumber(ARGV[3])
for i = 4, 3 + acknowledged do
    redis.call("XACK", KEYS[1], ARGV[1], ARGV[i])
end
for i = 1, #KEYS - 3 do
    local base = 3 + acknowledged + 3 * (i - 1)
    local task_id = ARGV[base + 1]
    if redis.call("EXISTS", KEYS[3 + i]) == 1 then
        redis.call("ZREM", KEYS[2], task_id)
        redis.call("HDEL", KEYS[3], task_id)
    else
        -- string.format: numbers beyond 2^31 would be printed in exponent form
        local sent = string.format("%.0f", now_ms)
        redis.call("HSET", KEYS[3], task_id, sent .. " " .. ARGV[base + 3])
        redis.call("ZADD", KEYS[2], string.format("%.0f", now_ms + ARGV[2] + ARGV[base + 2]), task_id)
    end
end
