-- heal: make a session cold, so that the next reader asks the archive: it got messages by itself.
--
-- ARGV  9 cleared-through id that the archive has, or any id above it and below what is said now
--       10 end of the reservation that ends by this, or '' for any and for none
-- Reply {'done'}
-- Nothing unflushed is lost. A reservation ends. Nothing is done where the session was cleared or
-- deleted above ARGV[9]: the archive does not know that yet, and a reader would take back from it what
-- is gone.
if ARGV[10] ~= '' and head.importing_until ~= ARGV[10] then return { 'done' } end
set('importing_until', '')
head.importing_until = nil
if (head.cleared or ZERO) <= ARGV[9] then cool() end
settle()
return { 'done' }
