-- settle_profile: put what was committed in the place of the writer's own marker.
--
-- KEYS  1 copy of a profile (string)
-- ARGV  1 the marker   2 the profile, or what stands for none   3 lifetime in milliseconds
-- Reply 1, or 0 and nothing done when another writer has marked it since: that one will settle it.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
