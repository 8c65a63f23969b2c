-- release_shard: give a shard up, if it is ours.
--
-- KEYS  1 owner of the shard (string)
-- ARGV  1 owner
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 1
