-- take_shard: take a free shard or keep one's own.
--
-- KEYS  1 owner of the shard (string)
-- ARGV  1 owner   2 lease milliseconds
-- Reply 1 when it is ours, 0 when another has it.
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
