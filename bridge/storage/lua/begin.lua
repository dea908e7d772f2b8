-- begin(keys=[done, lease, inflight, pairs, lanes, starts],
--       args=[task_id, token, lease_ms, max_deaths, redispatch_ms, idempotent, retries])
--
-- done      string  exists when the task has ended
-- lease     hash  token: of the run under way; until_ms: when it ends unless renewed; asked_ms: when another copy first
--                 asked since the last renewal; deaths: runs before it whose worker died; retries: of its message. A
--                 message of more retries is what that run has handed on, and need not wait for it
-- inflight  zset    task id -> when it is overdue, ms; put off, for the task runs
-- pairs     hash    task id -> "<sent_ms> <pair>"
-- lanes     hash    "<queue> <priority>" -> sent_ms of the newest task of that queue which has begun, sent once only
-- starts    hash    of first runs, how long after its journal entry each began: "<e>": how many within 2^e ms, but not
--                   within 2^(e - 1); ms: their sum
--
-- Returns [outcome, number]: [1, deaths] the task may run; [0, 0] it has ended; [-1, ms] another copy of its message
-- runs, for so long at least; [-2, deaths] too many workers died of it. The same token again gets the same answer.
-- Unless idempotent is "1", a task that has ended or runs elsewhere may run again.

local now = redis.call("TIME")
local now_ms = tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000)
local task_id, token, idempotent = ARGV[1], ARGV[2], ARGV[6] == "1"
-- As long as the ledger can ask for it: a run that has died counts while its message may come again.
local keep_ms = ARGV[3] + 2 * ARGV[5]

if idempotent and redis.call("EXISTS", KEYS[1]) == 1 then
    redis.call("ZREM", KEYS[3], task_id)
    redis.call("HDEL", KEYS[4], task_id)
    return {0, 0}
end

local lease = redis.call("HMGET", KEYS[2], "token", "until_ms", "deaths", "asked_ms", "retries")
local deaths = tonumber(lease[3] or 0)
local handed_on = tonumber(ARGV[7]) > tonumber(lease[5] or 0)
if lease[1] and lease[1] ~= token and not handed_on then
    -- A lease cannot be renewed while this server is away. So a run is dead only when it has not renewed for a whole
    -- lease after somebody asked, which shows that the server was there.
    local asked_ms = tonumber(lease[4] or now_ms)
    local left_ms = math.max(tonumber(lease[2]), asked_ms + ARGV[3]) - now_ms
    if left_ms <= 0 then
        deaths = deaths + 1
    elseif idempotent then
        redis.call("HSET", KEYS[2], "asked_ms", string.format("%.0f", asked_ms))
        redis.call("PEXPIRE", KEYS[2], keep_ms)
        return {-1, left_ms}
    end
end
if deaths > tonumber(ARGV[4]) then
    return {-2, deaths}
end
local until_ms = string.format("%.0f", now_ms + ARGV[3])
redis.call("HSET", KEYS[2], "token", token, "until_ms", until_ms, "deaths", deaths, "retries", ARGV[7])
redis.call("HDEL", KEYS[2], "asked_ms")
redis.call("PEXPIRE", KEYS[2], keep_ms)

local pair = redis.call("HGET", KEYS[4], task_id)
if pair then
    redis.call("ZADD", KEYS[3], string.format("%.0f", now_ms + ARGV[3] + ARGV[5]), task_id)
    local sent, text = string.match(pair, "^(%d+) (.*)$")
    local fields = cjson.decode(text)
    local lane = fields.queue .. " " .. fields.priority
    local newest = redis.call("HGET", KEYS[5], lane)
    -- Of a task that was sent again this may be the first message, from further ahead in the queue than sent_ms says; and
    -- a retry comes when its time has come, maybe through another queue.
    if fields.redispatches == 0 and not fields.retried and (not newest or tonumber(newest) < tonumber(sent)) then
        redis.call("HSET", KEYS[5], lane, sent)
    end
    local appended_ms = tonumber(string.match(fields.entry_id, "^%d+"))
    if appended_ms and not lease[1] and fields.redispatches == 0 and not fields.retried then
        local ms = math.max(0, now_ms - appended_ms)
        local _, exponent = math.frexp(math.max(0, ms - 1))
        -- pcall: for those who look; something else at that key must not stop the task
        redis.pcall("HINCRBY", KEYS[6], exponent, 1)
        redis.pcall("HINCRBY", KEYS[6], "ms", string.format("%.0f", ms))
    end
end
return {1, deaths}
