-- reserve: keep a session for the user whom an import names, until the archive says whose it is.
--
-- ARGV  9 user   10 milliseconds   11 id above what was known when the import began
-- Reply {'reserved'} | {'not_owner'} (it is another user's by now)
-- From here on nobody else becomes its owner for that time; what names no owner is said as ever. A
-- deletion ends it, and one since the import began leaves nothing to reserve: the session that comes
-- after is another. Repeated, it changes nothing more but its end.
local cleared = head.cleared or ZERO
if cleared > ARGV[11] and (not head.exists or head.born > cleared) then return { 'reserved' } end
if head.user and head.user ~= ARGV[9] then return { 'not_owner' } end
local lifetime = tonumber(ARGV[10])
set('importer', ARGV[9])
set('importer_until', milliseconds() + lifetime)
settle()
local left = redis.call('PTTL', HEAD)
if left >= 0 and left < lifetime then redis.call('PEXPIRE', HEAD, lifetime) end
return { 'reserved' }
