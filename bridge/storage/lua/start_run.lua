-- start_run(keys=[done, lease, inflight, tasks, watermarks, starts, dead, dead_size],
--           args=[task_id, token, lease_ms, keep_ms, max_deaths, redispatch_ms, idempotent,
--                 retries, retry_of, sent_ms, dedup_ttl_ms])
--
-- The transition to the state running, see ledger.py.
--
-- done        string  exists when the task has ended
-- lease       hash    retries: the number of the try that is due or running, from 0. While it runs, token: of the run;
--                     until_ms: when its lease ends unless it is renewed; asked_ms: when another copy of the message was
--                     first received since the last renewal; deaths: earlier runs of whom the worker died. Before it
--                     runs again, at_ms: when the try starts that is due. Expires after keep_ms, which is no less than
--                     dedup_ttl_ms
-- inflight    zset    task id -> when the task is overdue, ms; postponed here, because the task runs
-- tasks       hash    task id -> what was sent, see include/in_flight.lua. Its field retries is a second record of the try
--                     that is due: it lasts until the task ends, but a task need not be listed
-- watermarks  hash    "<lane>" -> sent_ms of the newest task of that lane that has started, and "<lane> started" -> when
--                     the last one started, ms; of those that were sent once only
-- starts      hash    how long after its journal entry each first run started. "<e>": how many started within 2^e ms,
--                     but not within 2^(e - 1); ms: the sum
-- dead, dead_size     lose the dead letter of a task that was given up, and runs after all; see write_dead_letter.lua
--
-- The message has the number `retries`. It may be a copy of an earlier try, which its broker restored. The run `retry_of`
-- has sent it as its retry, unless that is empty; so it need not wait until this run has released its lease. Any other run
-- has to end first. It was first sent at sent_ms, by the clock of its sender; 0: unknown.
--
-- Returns [result, number]: [1, deaths] the task may run; [0, 0] it has ended; [-1, ms] another run is in progress, for at
-- least so long; [-2, deaths] too many workers died while they ran it; [-3, retries] another try is due, which has another
-- message; [-4, ms] the message was sent so long ago that the done mark of its task may have expired. The same token again
-- gets the same answer. Unless idempotent is "1", a task that has ended, or that runs elsewhere, may run again.

-- include: server_ms
-- include: integer
-- include: in_flight
-- include: bytes_of
-- include: drop_dead_letter

local done, lease, inflight, tasks, watermarks, starts = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local dead, dead_size = KEYS[7], KEYS[8]
local task_id, token, lease_ms, keep_ms = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local max_deaths, redispatch_ms, idempotent = tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7] == "1"
local retries, retry_of, sent_ms, dedup_ttl_ms = tonumber(ARGV[8]), ARGV[9], tonumber(ARGV[10]), tonumber(ARGV[11])

local now_ms = server_ms()

if idempotent and redis.call("EXISTS", done) == 1 then
    redis.call("ZREM", inflight, task_id)
    redis.call("HDEL", tasks, task_id)
    return {0, 0}
end

local record = redis.call("HGET", tasks, task_id)
local holder, until_ms, deaths, asked_ms, due =
    unpack(redis.call("HMGET", lease, "token", "until_ms", "deaths", "asked_ms", "retries"))
if idempotent and not record and not due and sent_ms > 0 and now_ms - sent_ms > dedup_ttl_ms then
    return {-4, now_ms - sent_ms}
end
local queued_ms, json, task
if record then
    queued_ms, json = parse_in_flight(record)
    task = cjson.decode(json)
end
due = math.max(tonumber(due or 0), task and task.retries or 0)
if retries < due then
    return {-3, due}
end

local function withdraw_dead_letter()
    local id = task and given_up(task)
    if id then
        drop_dead_letter(dead, dead_size, id)
        task.given_up = nil
        redis.call("HSET", tasks, task_id, format_in_flight(queued_ms, cjson.encode(task)))
    end
end

deaths = tonumber(deaths or 0)
local handed_on = holder == retry_of and retries > due
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
    withdraw_dead_letter() -- it gets another one, which ends it
    return {-2, deaths}
end
redis.call(
    "HSET", lease, "token", token, "until_ms", integer(now_ms + lease_ms), "deaths", deaths, "retries", integer(retries)
)
redis.call("HDEL", lease, "asked_ms", "at_ms")
redis.call("PEXPIRE", lease, keep_ms)

if task then
    withdraw_dead_letter()
    redis.call("ZADD", inflight, integer(now_ms + lease_ms + redispatch_ms), task_id)
    if retries > (task.retries or 0) then -- the run before could not release its lease
        task.retries, task.retried = retries, true
        redis.call("HSET", tasks, task_id, format_in_flight(queued_ms, cjson.encode(task)))
    end
    local first_message = task.redispatches == 0 and not task.retried
    -- Only a task that was sent once shows how far its lane has been processed. Of one that was sent again, this may be the first
    -- message, which is further ahead in the queue than queued_ms indicates. A retry starts when its delay is over, and maybe
    -- through another queue.
    if first_message then
        local lane = lane_of(task)
        local newest_ms = math.max(tonumber(queued_ms), tonumber(redis.call("HGET", watermarks, lane) or 0))
        redis.call("HSET", watermarks, lane, integer(newest_ms), lane .. " started", integer(now_ms))
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
