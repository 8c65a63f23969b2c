-- settle_profile: put what was committed in the place of the writer's own marker.
--
-- KEYS  1 copy of a profile (string)
-- ARGV  1 the marker   2 the profile, or what stands for none   3 lifetime in milliseconds
--       4 lifetime of a marker in milliseconds
-- Reply 1, or 0 and only a marker left when the own one is gone. Then another writer was here, or
-- eviction and a reader after it: nobody here knows whose commit was the last, so all ask the archive
-- until the marker ends, and no reader that began before can fill its place.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[4])
  return 0
end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
