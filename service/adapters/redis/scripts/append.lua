-- append: messages at the end of a session, all or none, once.
--
-- KEYS  8 once: the record of this call (string: fingerprint, then ids, a line each)
-- ARGV  9 user or ''   10 fingerprint   11 lifetime of the record, milliseconds
--       12 id that the last message must have, '' for no message, '*' for any   13 count
--       14... body, random bits, body, random bits ...
-- Reply {'done', ids} | {'replayed', ids} | {'reused'} | {'not_owner'} | {'cold', state}
--       | {'moved', last id or ''} | {'full'} (backlog) | {'too_many'} (no archive to trim to)
-- A repeated call finds its record and changes nothing. Refusals change nothing but the lifetime.
local record = redis.call('GET', KEYS[8])
if record then
  local lines = {}
  for line in string.gmatch(record, '[^\n]+') do lines[#lines + 1] = line end
  if lines[1] ~= ARGV[10] then return { 'reused' } end
  -- A write of this connection, for a caller who waits for the disk: it comes after the messages.
  redis.call('SET', KEYS[8], record, 'KEEPTTL')
  table.remove(lines, 1)
  return { 'replayed', lines }
end

local owner = claim(ARGV[9])
if owner == 'cold' then return { 'cold', state(0) } end
if owner == 'not_owner' then return { 'not_owner' } end

if ARGV[12] ~= '*' then
  if not head.known then return { 'cold', state(0) } end
  if (head.last or '') ~= ARGV[12] then return { 'moved', head.last or '' } end
end

local count, bytes = tonumber(ARGV[13]), 0
for place = 1, count do bytes = bytes + #ARGV[12 + 2 * place] end
if not has_room(count, bytes) then return { 'full' } end
if not ARCHIVED and tonumber(head.held) + count > HELD_MAX then return { 'too_many' } end

local ids = say(14, count)
redis.call('SET', KEYS[8], ARGV[10] .. '\n' .. table.concat(ids, '\n'), 'PX', ARGV[11])
if ARGV[10] ~= '-' then index_call(tonumber(ARGV[11])) end
settle()
return { 'done', ids }
