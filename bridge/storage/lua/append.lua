-- append(keys=[journal, group_settings, seen_1 .. seen_n, then the optional keys],
--        args=[own_dedup_ttl_ms, event_ttl_ms, refill, max_events, window_ms,
--              then for each event: digest, fingerprint, id, type, event, consequences, rate, signer])
--
-- journal         stream  gets one entry per event: id, type, event (the JSON)
-- group_settings  hash    group -> its settings, see group_settings.py
-- seen_i          string  "<digest>:<fingerprint>:<entry>" of the first event with this id.
--                         "<digest>:<fingerprint>:limited" when that event was refused because of its source's rate,
--                         with ":signed:limited" at the end if it had a signer.
--                         It expires after the longest dedup_ttl of all groups: until then one of them may find the
--                         event in its key again
-- consequences    zset    see publish.lua
-- rate            string  counts the new events of one source; expires window_ms after the first. At max_events,
--                         further new events of the source are refused as limited. An event that was seen does not
--                         count. For an event with a signer, a key that has signed it, it is the count of the key
--
-- An optional key is given as its position among the keys; 0: it is left out.
--
-- refill "1" restores a journal that was deleted. Then a mark counts only while its entry is in the journal, whatever
-- type and payload it stands for: the keys are read to find what is missing, not to compare them with broadcasts. A new
-- journal may use an entry id again within the same millisecond, so the entry must also be of this event. What was
-- limited is not restored.
--
-- Returns for each event: 1 appended; 0 a repetition of one that is in the journal; -1 the id belongs to an event of
-- another type or payload; -2 limited, or a repetition of one that was. An error stops the script at that event.
-- Calling it again is safe: the events before it are then repetitions.

-- include: integer
-- include: index_consequence
-- include: longest_ms

local FIRST_SEEN, PER_EVENT = 3, 8

local journal, group_settings = KEYS[1], KEYS[2]
local own_dedup_ttl_ms, event_ttl_ms, refill = ARGV[1], ARGV[2], ARGV[3] == "1"
local max_events, window_ms = tonumber(ARGV[4]), ARGV[5]

local function ends(text, with)
    return string.sub(text, -#with) == with
end

-- Whether the mark of a journal that was deleted stands for nothing in the new one.
local function outdated(mark, id)
    local entry = string.match(mark, ":(%d+-%d+)$")
    local row = entry and redis.call("XRANGE", journal, entry, entry)[1]
    return entry and not (row and row[2][2] == id)
end

local rows = redis.call("HVALS", group_settings)
rows[#rows + 1] = false
local dedup_ttl_ms = integer(longest_ms(rows, 2, own_dedup_ttl_ms))

local results = {}
for i = 1, (#ARGV - 5) / PER_EVENT do
    local seen, at = KEYS[FIRST_SEEN + i - 1], 6 + PER_EVENT * (i - 1)
    local digest, fingerprint, id, event_type, event, consequences, rate, signer = unpack(ARGV, at, at + PER_EVENT - 1)
    local limited = signer == "" and "limited" or "signed:limited"
    local first = redis.call("GET", seen)
    if first and refill and outdated(first, id) then
        first = false
    elseif first and signer ~= "" and ends(first, ":limited") and not ends(first, ":signed:limited") then
        first = false -- anyone may have sent an unsigned event with this id
    end
    if not first then
        local mark = digest .. ":" .. fingerprint .. ":"
        consequences, rate = KEYS[tonumber(consequences)], KEYS[tonumber(rate)]
        -- pcall: a key of another type must not limit a source
        if rate and (tonumber(redis.pcall("GET", rate)) or 0) >= max_events then
            redis.call("SET", seen, mark .. limited, "PX", dedup_ttl_ms)
            results[i] = -2
        else
            local entry = redis.call("XADD", journal, "*", "id", id, "type", event_type, "event", event)
            redis.call("SET", seen, mark .. entry, "PX", dedup_ttl_ms)
            if consequences then
                index_consequence(consequences, event_ttl_ms, id, entry)
            end
            if rate and redis.pcall("INCR", rate) == 1 then
                redis.call("PEXPIRE", rate, window_ms)
            end
            results[i] = 1
        end
    elseif refill then
        results[i] = 0
    elseif string.sub(first, 1, #digest + 1) == digest .. ":" then
        results[i] = ends(first, ":limited") and -2 or 0
    else
        results[i] = -1
    end
end
return results
