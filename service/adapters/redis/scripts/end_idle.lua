-- end_idle: delete a session in which nothing was said or changed for long; journaled.
--
-- ARGV  9 id before which its last activity must be   10 random bits
-- Reply {'done'} | {'active'} | {'full'}
-- The archive is not asked: that the session is idle there, the caller has read. What came after that
-- is in the head, which is then younger or unflushed. A repeated call changes nothing more.
if is_repeated() then return { 'done' } end
if tonumber(head.unflushed) > 0 or (head.active or ZERO) >= ARGV[9] then return { 'active' } end
if head.known and not head.exists then
  leave_nothing()
  return { 'active' }
end
if not has_room(1, 0) then return { 'full' } end
forget_messages(accept('d', '', ARGV[10]))
end_session()
cancel_calls()
remember()
settle()
return { 'done' }
