-- renew: keep a turn's lease.
--
-- ARGV  9 lease token   10 lease milliseconds
-- Reply {'renewed'} | {'cancelled'} (kept, and somebody asks the turn to end) | {'lost'}
-- An expired lease that nobody took is still ours: the token says so.
if head.lease ~= ARGV[9] then
  leave_nothing()
  return { 'lost' }
end
set('lease_until', milliseconds() + tonumber(ARGV[10]))
settle()
return { redis.call('HGET', HEAD, 'stop') == ARGV[9] and 'cancelled' or 'renewed' }
