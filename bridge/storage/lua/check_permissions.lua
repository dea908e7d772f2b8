-- check_permissions(keys=[], args=[length_1, word_1, .. , length_2, word_1, ..])
--
-- Each command is given as the number of its words, then the words. None is executed, and none is recorded in ACL LOG.
--
-- Returns the positions of the commands for which the current user lacks the permission; nil before Redis 7.0, where
-- scripts cannot check permissions.

if not redis.acl_check_cmd then
    return false
end
local refused, number, at = {}, 0, 1
while at <= #ARGV do
    local length = tonumber(ARGV[at])
    number = number + 1
    if not redis.acl_check_cmd(unpack(ARGV, at + 1, at + length)) then
        refused[#refused + 1] = number
    end
    at = at + 1 + length
end
return refused
