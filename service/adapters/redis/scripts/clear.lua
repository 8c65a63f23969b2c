-- clear: forget what was said so far; the clear has its place in the journal like a message.
--
-- ARGV  9 random bits
-- Reply {'done'} | {'missing'} | {'cold', state} | {'full'}
-- A repeated call changes nothing more. A running turn loses its lease.
if is_repeated() then return { 'done' } end
if not head.known then return { 'cold', state(0) } end
if not head.exists then return { 'missing' } end
if not has_room(1, 0) then return { 'full' } end
forget_messages(accept('c', '', ARGV[9]))
renew_document(ARGV[9])
forget_asked()
remember()
settle()
return { 'done' }
