-- reserve: before the commit of an import, keep its session from being known by what the archive said
-- until then.
--
-- ARGV  9 user whom the import names or ''   10 milliseconds   11 id above what was known at its begin
-- Reply {'reserved'} | {'not_owner'} (it is another user's by now)
-- The session is cold from here on and is not filled for that time, so that nobody becomes its owner
-- and nobody is told that it is empty; what names no owner is said as ever. Should the import die, the
-- session is read from the archive, whichever way its commit ended.
-- A clear since the import began hides what it brings: the session is known as it is, and this user's.
-- One that began anew after a deletion has nothing to do with it. Repeated, it changes nothing more but
-- its end.
local cleared = head.cleared or ZERO
local hidden = cleared > ARGV[11]
if hidden and (not head.exists or head.born > cleared) then return { 'reserved' } end
if ARGV[9] ~= '' and head.user and head.user ~= ARGV[9] then return { 'not_owner' } end
if hidden then
  if ARGV[9] ~= '' and not head.user then set('user', ARGV[9]) end
  settle()
  return { 'reserved' }
end
local lifetime = tonumber(ARGV[10])
set('importing_until', milliseconds() + lifetime)
cool()
settle()
local left = redis.call('PTTL', HEAD)
if left >= 0 and left < lifetime then redis.call('PEXPIRE', HEAD, lifetime) end
return { 'reserved' }
