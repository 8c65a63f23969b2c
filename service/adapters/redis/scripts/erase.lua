-- erase: forget a session of a user for good: as a deletion, and the records of its calls with it.
--
-- ARGV  9 user   10 random bits
-- Reply {'done', id of the deletion, unflushed entries, records deleted, 1 if it was hot, dead letters}
--       | {'gone', id up to which it was cleared or ''} (deleted by another call, or by now another
--       user's) | {'full'}
-- A repeated call changes nothing more and is answered likewise. The archive is not asked: that a
-- session which is not hot is this user's, the caller has read there. A running turn loses its lease.
-- A session that an earlier erasure ended and the archive has not ended yet is done, with its id.
local CANCELLED_MILLISECONDS = 300000 -- longer than any turn
local record = redis.call('GET', KEYS[8])
if record then
  local id, entries, records, hot, letters = string.match(record, '^(%S*) (%d+) (%d+) (%d+) (%d+)$')
  return { 'done', id, tonumber(entries), tonumber(records), tonumber(hot), tonumber(letters) }
end
if head.known and not head.exists then
  if redis.call('HGET', HEAD, 'erased') == ARGV[9] then return { 'done', head.cleared, 0, 0, 0, 0 } end
  leave_nothing()
  return { 'gone', head.cleared or '' }
end
if head.user ~= ARGV[9] and (head.user or head.known) then return { 'gone', head.cleared or '' } end
if not has_room(1, 0) then return { 'full' } end

local entries, hot = tonumber(head.unflushed), head.exists and 1 or 0
local id = accept('d', '', ARGV[10])
forget_messages(id)
end_session()
entries = entries - forgotten_letters
local records = take_calls()
for _, key in ipairs(records) do
  -- A turn that is running is told that it was cancelled; of what it was nothing stays.
  local running = redis.call('TYPE', key).ok == 'hash' and redis.call('HMGET', key, 'state', 'token')
  redis.call('DEL', key)
  if running and running[1] == 'running' then
    redis.call('HSET', key, 'state', 'cancelled', 'token', running[2])
    redis.call('PEXPIRE', key, CANCELLED_MILLISECONDS)
  end
end
redis.call('SET', KEYS[8], table.concat({ id, entries, #records, hot, forgotten_letters }, ' '),
  'PX', REPEAT_MILLISECONDS)
set('erased', ARGV[9])
settle()
if not ARCHIVED then
  redis.call('DEL', HEAD)
  redis.call('ZREM', INDEX, ARGV[8])
end
return { 'done', id, entries, #records, hot, forgotten_letters }
