-- move_back(keys=[journal, set_aside, aside], args=[seen, max_entries, max_bytes])
--
-- journal    stream  gets the entries of `aside` under new ids, in their order, each in the step that deletes it there
-- set_aside  list    loses `aside` in the call after the last entry
-- aside      stream  see set_aside.lua
--
-- An entry gets the field `done`: the names of the groups that had acknowledged it, which skip it, separated by spaces.
-- `seen` is the start of the names of the marks, which have the ids of the entries: they get the new ones.
--
-- Moves up to max_entries with about max_bytes, so that one call never blocks the server for long. Returns how many were moved.

-- include: fields_of
-- include: bytes_of
-- include: id_before

local FIELDS = {"id", "type", "event", "group", "handler"} -- of any other program there may be thousands

local journal, set_aside, aside = KEYS[1], KEYS[2], KEYS[3]
local seen, max_entries, max_bytes = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])

local info = redis.pcall("XINFO", "STREAM", aside) -- an error if another process was faster
local left = info.err and 0 or fields_of(info)["length"]
if left == 0 then
    redis.call("UNLINK", aside)
    redis.call("LREM", set_aside, 1, aside)
    return 0
end
local groups = {}
for i, group in ipairs(redis.call("XINFO", "GROUPS", aside)) do
    groups[i] = fields_of(group)
end

local function done_by(entry, before)
    local names = {before}
    for _, group in ipairs(groups) do
        if not id_before(group["last-delivered-id"], entry)
            and #redis.call("XPENDING", aside, group["name"], entry, entry, 1) == 0 then
            names[#names + 1] = group["name"]
        end
    end
    return table.concat(names, " ")
end

local function point_mark_to(entry, id, old)
    local mark = redis.pcall("GET", seen .. id)
    if type(mark) == "string" and string.sub(mark, -#old - 1) == ":" .. old then
        redis.call("SET", seen .. id, string.sub(mark, 1, -#old - 1) .. entry, "KEEPTTL")
    end
end

-- It changes nothing, but Redis without memory refuses no later write of a script after one that needs none. What is
-- added here is deleted there.
redis.call("XDEL", aside, "0-0")

local moved, bytes = 0, 0
while moved < math.min(left, max_entries) and bytes < max_bytes do
    local row = redis.call("XRANGE", aside, "-", "+", "COUNT", 1)[1]
    local stored, fields = fields_of(row[2]), {}
    for _, name in ipairs(FIELDS) do
        if stored[name] then
            fields[#fields + 1], fields[#fields + 2] = name, stored[name]
        end
    end
    fields[#fields + 1], fields[#fields + 2] = "done", done_by(row[1], stored["done"])
    local entry = redis.call("XADD", journal, "*", unpack(fields))
    redis.call("XDEL", aside, row[1])
    if stored["id"] then
        point_mark_to(entry, stored["id"], row[1])
    end
    moved, bytes = moved + 1, bytes + bytes_of(row[2])
end
return moved
