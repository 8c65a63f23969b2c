-- delete: forget the session and what was said in it; journaled, so that it keeps its place.
--
-- ARGV  9 random bits
-- Reply {'done'} | {'missing'} | {'cold', state} | {'full'}
-- The head stays until the archive has the deletion: it says that nothing exists. Records of calls
-- stay and hold no answers any more; they say to a turn that was running that it was cancelled.
if is_repeated() then return { 'done' } end
if not head.known then return { 'cold', state(0) } end
if not head.exists then return { 'missing' } end
if not has_room(1, 0) then return { 'full' } end
forget_messages(accept('d', '', ARGV[9]))
end_session()
cancel_calls()
remember()
settle()
if not ARCHIVED then
  redis.call('DEL', HEAD)
  redis.call('ZREM', INDEX, ARGV[8])
end
return { 'done' }
