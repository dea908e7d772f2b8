-- may(keys=[], args=[words_1, word_1, .. , words_2, word_1, ..])
--
-- Returns the positions of those of the commands that the user who asks may not give, nil before Redis 7.0, which does
-- not tell. None of them is carried out, and none comes into ACL LOG. Each has as many words as stand in front of it.

if not redis.acl_check_cmd then
    return false
end
local refused, number, at = {}, 0, 1
while at <= #ARGV do
    local words = tonumber(ARGV[at])
    number = number + 1
    if not redis.acl_check_cmd(unpack(ARGV, at + 1, at + words)) then
        refused[#refused + 1] = number
    end
    at = at + 1 + words
end
return refused
