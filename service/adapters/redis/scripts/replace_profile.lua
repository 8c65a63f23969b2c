-- replace_profile: put a profile in the place of the one seen.
--
-- KEYS  1 profile (string, JSON that begins with its version)
-- ARGV  1 version seen or ''   2 new profile or '' to remove it   3 its version or ''
-- Reply 1, or 0 and nothing done when another one stands there by now. A repeated call changes
-- nothing more.
local found = redis.call('GET', KEYS[1])
local version = found and string.sub(found, 13, 48) or ''
if version == ARGV[3] then return 1 end
if version ~= ARGV[1] then return 0 end
if ARGV[2] == '' then
  redis.call('DEL', KEYS[1])
else
  redis.call('SET', KEYS[1], ARGV[2])
end
return 1
