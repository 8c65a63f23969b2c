-- document: make a session or put another document in the place of the one seen.
--
-- ARGV  9 'create' or 'replace'   10 user or ''   11 document as seen (replace)   12 new document
--       13 window that it asks for or ''   14 its lifetime in seconds or ''   15 random bits
--       16 fingerprint   17 lifetime of the record, milliseconds   18 token budget that it sets or ''
-- Reply {'done', id} | {'replayed', id} | {'reused'} | {'exists'} | {'missing'} | {'changed'}
--       | {'cold', state} | {'full'}
-- A repeated call changes nothing more.
local record = redis.call('GET', KEYS[8])
if record then
  local fingerprint, id = string.match(record, '^([^\n]*)\n(.*)$')
  if fingerprint ~= ARGV[16] then return { 'reused' } end
  return { 'replayed', id }
end
if not head.known then return { 'cold', state(0) } end
local creates = ARGV[9] == 'create'
if creates and head.exists then return { 'exists' } end
if not creates and not head.exists then return { 'missing' } end
if not creates and (head.document or '') ~= ARGV[11] then return { 'changed' } end
if not has_room(1, #ARGV[12]) then return { 'full' } end

if ARGV[10] ~= '' then set('user', ARGV[10]) end
set('document', ARGV[12])
set('want', ARGV[13])
set('ttl', ARGV[14])
set('budget', ARGV[18])
if head.want == '' then head.want = nil end
if head.budget == '' then head.budget = nil end
if head.ttl == '' then head.ttl = nil end
local id = accept('s', ARGV[12], ARGV[15])
if creates then
  set('exists', 1)
  set('erased', '')
  set('born', id)
  set('floor', ZERO)
  set('pinned', 0)
end
redis.call('SET', KEYS[8], ARGV[16] .. '\n' .. id, 'PX', ARGV[17])
if ARGV[16] ~= '-' then index_call(tonumber(ARGV[17])) end
settle()
return { 'done', id }
