-- Delete a dead letter and subtract it from what `dead_size` counts; return whether it existed.
local function drop_dead_letter(dead, dead_size, id)
    local row = redis.call("XRANGE", dead, id, id)[1]
    if not row then
        return false
    end
    redis.call("XDEL", dead, id)
    if redis.call("HMGET", dead_size, "bytes")[1] then
        redis.call("HINCRBY", dead_size, "bytes", -bytes_of(row[2]))
        redis.call("HINCRBY", dead_size, "entries", -1)
    end
    return true
end
