-- bury: move the oldest entry of a journal, which the archive refuses, to the dead letters.
--
-- KEYS  1 journal   2 shard   3 letters of the shard   4 the letter   then, of an entry that can be
--       read, head, tail, pins and index of its session, and the session's letters
-- ARGV  1 position   2 id   3 class   4 reason   5 letters at most, per shard
--       6 lifetime of an archived session, milliseconds   7 messages held at most   8 session id
-- Reply 'buried' | 'forgotten' | 'moved' | 'full'
-- One step: an entry is in the journal or a letter, never in neither or both. The session stays
-- unflushed by it. What was cleared or deleted since nobody can see any more: it is dropped. Moved: the
-- entry is not the oldest (any more); so is a repeated call answered.
local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)
if #first == 0 or first[1][1] ~= ARGV[1] then return 'moved' end
local HEAD, id, class = KEYS[5], ARGV[2], tonumber(ARGV[3])
local fields = first[1][2]
local size = 0
for place = 1, #fields, 2 do
  if fields[place] == 'b' then size = #fields[place + 1] end
end

local function leave_journal()
  redis.call('XDEL', KEYS[1], ARGV[1])
  if redis.call('XLEN', KEYS[1]) == 0 then
    redis.call('HSET', KEYS[2], 'bytes', 0)
  else
    redis.call('HINCRBY', KEYS[2], 'bytes', -size)
  end
end

local cleared = false
if HEAD then
  local known = redis.call('HMGET', HEAD, 'exists', 'born', 'cleared')
  cleared = known[3] and known[3] >= id
  local forgotten = cleared
    and (class ~= DOCUMENT_CLASS or not known[1] or (known[2] and known[2] > id))
  if forgotten then
    leave_journal()
    let_go(HEAD, KEYS[6], KEYS[7], KEYS[8], ARGV[8], 1, tonumber(ARGV[6]), tonumber(ARGV[7]))
    return 'forgotten'
  end
end

if cleared then
  -- A document that a clear has left standing: as a letter it would come too late (session.lua).
  leave_journal()
  redis.call('XADD', KEYS[1], '*', unpack(fields))
  redis.call('HINCRBY', KEYS[2], 'bytes', size)
  return 'moved'
end
if redis.call('ZCARD', KEYS[3]) >= tonumber(ARGV[5]) then return 'full' end
leave_journal()
local now = redis.call('TIME')
local milliseconds = now[1] * 1000 + math.floor(now[2] / 1000)
redis.call('HSET', KEYS[4], unpack(fields))
redis.call('HSET', KEYS[4], 'position', ARGV[1], 'reason', ARGV[4], 'first', milliseconds,
  'last', milliseconds, 'attempts', 1)
redis.call('ZADD', KEYS[3], milliseconds, id)
redis.call('HINCRBY', KEYS[2], 'letters', 1)
redis.call('HINCRBY', KEYS[2], 'letter_bytes', size)
if HEAD then
  redis.call('ZADD', KEYS[9], class, id)
  redis.call('HSET', HEAD, 'letter', oldest_letter(KEYS[9]))
end
return 'buried'
