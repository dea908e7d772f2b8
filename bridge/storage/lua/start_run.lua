-- start_run(keys=[done, lease, inflight, tasks, watermarks, starts],
--           args=[task_id, token, lease_ms, max_deaths, redispatch_ms, idempotent, retries])
--
-- The transition to the state running, see ledger.py.
--
-- done        string  exists when the task has ended
-- lease       hash    token: of the run in progress; until_ms: when its lease ends unless it is renewed; asked_ms: when
--                     another copy of the message was first received since the last renewal; deaths: earlier runs whose worker
--                     died; retries: of the message of the run. A message of more retries was sent by that run itself,
--                     as a retry, and need not wait for it
-- inflight    zset    task id -> when the task is overdue, ms; postponed here, because the task runs
-- tasks       hash    task id -> what was sent, see include/in_flight.lua
-- watermarks  hash    "<queue> <priority>" -> sent_ms of the newest task of that queue that has started, of those that
--                     were sent once only
-- starts      hash    how long after its journal entry each first run started. "<e>": how many started within 2^e ms,
--                     but not within 2^(e - 1); ms: the sum
--
-- Returns [result, number]: [1, deaths] the task may run; [0, 0] it has ended; [-1, ms] another copy of its message is
-- running, for at least so long; [-2, deaths] too many workers died while they ran it. The same token again gets the
-- same answer. Unless idempotent is "1", a task that has ended, or that runs elsewhere, may run again.

-- include: server_ms
-- include: integer
-- include: in_flight

local done, lease, inflight, tasks, watermarks, starts = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local task_id, token, lease_ms, max_deaths = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local redispatch_ms, idempotent, retries = tonumber(ARGV[5]), ARGV[6] == "1", ARGV[7]

local now_ms = server_ms()
-- As long as the task may be redispatched: a run whose worker died counts while its message may be received again.
local keep_ms = lease_ms + 2 * redispatch_ms

if idempotent and redis.call("EXISTS", done) == 1 then
    redis.call("ZREM", inflight, task_id)
    redis.call("HDEL", tasks, task_id)
    return {0, 0}
end

local holder, until_ms, deaths, asked_ms, holder_retries =
    unpack(redis.call("HMGET", lease, "token", "until_ms", "deaths", "asked_ms", "retries"))
deaths = tonumber(deaths or 0)
local handed_on = tonumber(retries) > tonumber(holder_retries or 0)
if holder and holder ~= token and not handed_on then
    -- No lease can be renewed while this server is unavailable. So a run counts as dead only when it has not renewed its
    -- lease for a whole lease_ms after another copy was received, which shows that the server was available.
    asked_ms = tonumber(asked_ms or now_ms)
    local left_ms = math.max(tonumber(until_ms), asked_ms + lease_ms) - now_ms
    if left_ms <= 0 then
        deaths = deaths + 1
    elseif idempotent then
        redis.call("HSET", lease, "asked_ms", integer(asked_ms))
        redis.call("PEXPIRE", lease, keep_ms)
        return {-1, left_ms}
    end
end
if deaths > max_deaths then
    return {-2, deaths}
end
redis.call("HSET", lease, "token", token, "until_ms", integer(now_ms + lease_ms), "deaths", deaths, "retries", retries)
redis.call("HDEL", lease, "asked_ms")
redis.call("PEXPIRE", lease, keep_ms)

local record = redis.call("HGET", tasks, task_id)
if record then
    redis.call("ZADD", inflight, integer(now_ms + lease_ms + redispatch_ms), task_id)
    local sent_ms, json = parse_in_flight(record)
    local task = cjson.decode(json)
    local first_message = task.redispatches == 0 and not task.retried
    local queue = task.queue .. " " .. task.priority
    local newest = redis.call("HGET", watermarks, queue)
    -- Only a task that was sent once shows how far its queue has been processed. Of one that was sent again, this may be the first
    -- message, which is further ahead in the queue than sent_ms indicates. A retry starts when its delay is over, and maybe
    -- through another queue.
    if first_message and (not newest or tonumber(newest) < tonumber(sent_ms)) then
        redis.call("HSET", watermarks, queue, sent_ms)
    end
    local appended_ms = tonumber(string.match(task.entry_id, "^%d+"))
    if appended_ms and not holder and first_message then
        local ms = math.max(0, now_ms - appended_ms)
        local _, exponent = math.frexp(math.max(0, ms - 1))
        -- pcall: only monitors read this; a key of another type there must not stop the task
        redis.pcall("HINCRBY", starts, exponent, 1)
        redis.pcall("HINCRBY", starts, "ms", integer(ms))
    end
end
return {1, deaths}
