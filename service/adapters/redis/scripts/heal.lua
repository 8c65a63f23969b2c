-- heal: make a session cold, so that the next reader asks the archive: it got messages by itself.
--
-- ARGV  9 cleared-through id that the archive has, or any id above it and below what is said now
--       10 user for whom it was reserved and whose it is in the archive now, or ''
-- Reply {'done'}
-- Nothing unflushed is lost: what is held stays held, and so do owner, document, lifetime, budget,
-- lease and cleared-through. Nothing is done where the session was cleared or deleted above ARGV[9]:
-- the archive does not know that yet, and a reader would take back from it what is gone.
if ARGV[10] ~= '' and redis.call('HGET', HEAD, 'importer') == ARGV[10] then
  if not head.user then set('user', ARGV[10]) end
  set('importer', '')
  set('importer_until', '')
end
if (head.cleared or ZERO) <= ARGV[9] then
  set('epoch', ARGV[1])
  set('known', '')
  head.known = nil
  local first = redis.call('LINDEX', TAIL, 0)
  if first then
    set('floor', string.sub(first, 8, 43))
  else
    set('floor', '')
    head.floor = nil
  end
  redis.call('DEL', PINS)
  set('pinned', '')
  head.pinned = nil
end
settle()
return { 'done' }
