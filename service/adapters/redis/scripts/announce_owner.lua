-- announce_owner: be counted among the live flushers for another lease time.
--
-- KEYS  1 live flushers (zset: owner by the end of its announcement, milliseconds)
-- ARGV  1 owner   2 lease milliseconds, 0 to be gone at once
-- Reply the number of live flushers, this one included unless gone.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if tonumber(ARGV[2]) > 0 then
  redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
else
  redis.call('ZREM', KEYS[1], ARGV[1])
end
return redis.call('ZCARD', KEYS[1])
