-- publish: a piece of a running turn's answer, for readers elsewhere.
--
-- KEYS  8 pieces of the turn (stream)
-- ARGV  9 lease token   10 piece   11 lifetime of the pieces, milliseconds
-- Reply {'held'} | {'cancelled'} (published, and somebody asks the turn to end) | {'lost'}
-- Who has no lease publishes nothing: what was cleared away does not come back. A repeated call
-- publishes twice; the piece says where it stands.
if head.lease ~= ARGV[9] then
  leave_nothing()
  return { 'lost' }
end
redis.call('XADD', KEYS[8], '*', 'd', ARGV[10])
redis.call('PEXPIRE', KEYS[8], ARGV[11])
redis.call('HSET', HEAD, 'pieces', KEYS[8])
return { redis.call('HGET', HEAD, 'stop') == ARGV[9] and 'cancelled' or 'held' }
