-- summary: put a summary in the place of the one seen; the messages stay as they are.
--
-- ARGV  9 last id that the summary seen covers or ''   10 new summary   11 last id that it covers
--       12 random bits   13 first id that it covers
-- Reply {'done'} | {'missing'} | {'changed'} | {'cold', state} | {'full'}
-- A repeated call changes nothing more. What was cleared away since is not summarised,
-- and a summary never goes back.
if is_repeated() then return { 'done' } end
if not head.known then return { 'cold', state(0) } end
if not head.exists then return { 'missing' } end
if (head.through or '') ~= ARGV[9] or ARGV[11] <= (head.cleared or ZERO)
  or ARGV[11] <= (head.through or ZERO) then
  return { 'changed' }
end
-- Without an archive a deleted session leaves no head behind: a summary may be of that one still.
if not ARCHIVED and ARGV[13] < (head.born or ZERO) then return { 'changed' } end
if not has_room(1, #ARGV[10]) then return { 'full' } end
set('summary', ARGV[10])
set('through', ARGV[11])
accept('u', ARGV[10], ARGV[12])
remember()
settle()
return { 'done' }
