-- refuse_again: note that a retry of a dead letter was refused.
--
-- KEYS  1 the letter
-- ARGV  1 reason   2 attempts before
-- Reply attempts, or 0 where there is no such letter any more. Repeated, it changes nothing more.
local before = redis.call('HGET', KEYS[1], 'attempts')
if not before then return 0 end
if before ~= ARGV[2] then return tonumber(before) end
local now = redis.call('TIME')
redis.call('HSET', KEYS[1], 'reason', ARGV[1], 'attempts', before + 1,
  'last', now[1] * 1000 + math.floor(now[2] / 1000))
return before + 1
