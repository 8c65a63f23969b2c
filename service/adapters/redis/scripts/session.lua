-- What every script of a session shares; it is prepended to each of them.
--
-- KEYS  1 head (hash)  2 tail (list)  3 pins (list)  4 journal (stream)  5 shard (hash)
--       6 index of the tenant's sessions (zset)  7 calls: the session's records of calls (zset: key
--       by expiry, milliseconds)  8 once: the record of this call
-- ARGV  1 nonce: the epoch of a head that begins here
--       2 lifetime of an archived session, milliseconds
--       3 messages held at most
--       4 '1' with an archive behind the journal, '0' without
--       5 journal entries at most, per shard   6 journal bytes at most, per shard
--       7 tenant   8 session id   9... the script's own
--
-- Guarantees: a script's effects are one step; a message is in the journal exactly when it is in the
-- tail and not yet archived; nothing unflushed has a lifetime; the tail never loses what the journal
-- still holds. Without an archive nothing is ever unflushed and nothing is trimmed.
local HEAD, TAIL, PINS, JOURNAL, SHARD, INDEX, CALLS =
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local HELD_MAX = tonumber(ARGV[3])
local ARCHIVED = ARGV[4] == '1'
-- System and developer messages kept apart; of a session with more the archive is asked.
local PINNED_MAX = 1000
local ZERO = '00000000-0000-0000-0000-000000000000'
-- How long a head lives that was made only to be filled: longer than any request.
local UNFILLED_MILLISECONDS = 60000

local FIELDS = {
  'epoch', 'known', 'exists', 'user', 'document', 'born', 'floor', 'cleared', 'active', 'last',
  'unflushed', 'held', 'pinned', 'ttl', 'want', 'lease', 'lease_until', 'turn', 'budget',
  'summary', 'through', 'importing_until', 'letter',
}

local head = {}
local changed = {}
-- Whether the head began in this script: nothing was hot.
local fresh = false

local function set(field, value)
  head[field] = value
  changed[field] = value
end

-- Written in one command, before a script answers.
local function save()
  local pairs_, gone = {}, {}
  for field, value in pairs(changed) do
    if value == '' then
      gone[#gone + 1] = field
    else
      pairs_[#pairs_ + 1] = field
      pairs_[#pairs_ + 1] = value
    end
  end
  if #gone > 0 then redis.call('HDEL', HEAD, unpack(gone)) end
  if #pairs_ > 0 then redis.call('HSET', HEAD, unpack(pairs_)) end
  changed = {}
end

-- Have the process of the turn that has the session look whether it is to end. Where an ACL grants no
-- channels it looks by itself: that must not fail the step.
local function tell_turn()
  if not head.lease then return end
  local listener = redis.call('HGET', HEAD, 'listener')
  if listener then redis.pcall('PUBLISH', listener, head.lease) end
end

local function begin_anew()
  tell_turn()
  redis.call('DEL', HEAD, TAIL, PINS, dead_of(HEAD))
  head = {}
  changed = {}
  fresh = true
  set('epoch', ARGV[1])
  set('unflushed', 0)
  set('held', 0)
  if not ARCHIVED then
    set('known', 1)
    set('floor', ZERO)
    set('pinned', 0)
  end
  save()
  redis.call('PEXPIRE', HEAD, UNFILLED_MILLISECONDS)
end

local function load()
  local values = redis.call('HMGET', HEAD, unpack(FIELDS))
  for place, field in ipairs(FIELDS) do
    head[field] = values[place] or nil
  end
  -- Eviction may have taken a key of an archived session and left the others.
  local torn = not head.epoch
    or redis.call('LLEN', TAIL) ~= tonumber(head.held)
    or (head.pinned and head.pinned ~= '0' and redis.call('LLEN', PINS) ~= tonumber(head.pinned))
  if torn then begin_anew() end
end

local function milliseconds()
  local now = redis.call('TIME')
  return now[1] * 1000 + math.floor(now[2] / 1000)
end

-- See service/domain/ids.py for the layout. Doubles hold 53 bits: every term here has 48 at most.
local function identity(stream_id, random)
  local dash = string.find(stream_id, '-', 1, true)
  local ms = tonumber(string.sub(stream_id, 1, dash - 1))
  local counter = tonumber(string.sub(stream_id, dash + 1))
  return string.format('%08x-%04x-%04x-%04x-%012x',
    math.floor(ms / 65536), ms % 65536,
    0x7000 + math.floor(counter / 1048576),
    0x8000 + math.floor(counter / 64) % 16384,
    (counter % 64) * 4398046511104 + random)
end

-- Dead letters count as what is not archived, and so does what stands behind one in the tail.
local function has_room(entries, bytes)
  if not ARCHIVED then return true end
  local most, held = tonumber(ARGV[5]), redis.call('HMGET', SHARD, 'bytes', 'letters', 'letter_bytes')
  if redis.call('XLEN', JOURNAL) + tonumber(held[2] or 0) + entries > most then return false end
  if head.letter and head.letter ~= '' and tonumber(head.held) + entries > most then return false end
  return tonumber(held[1] or 0) + tonumber(held[3] or 0) + bytes <= tonumber(ARGV[6])
end

local journaled_bytes, accepted_at = 0, nil

-- One event into the journal; returns its id, which no earlier one of the shard reaches.
local function accept(kind, body, random)
  local stream_id
  if ARCHIVED then
    stream_id = redis.call('XADD', JOURNAL, '*', 'k', kind, 't', ARGV[7], 's', ARGV[8],
      'u', head.user or '', 'r', random, 'b', body)
    journaled_bytes = journaled_bytes + #body
    set('unflushed', tonumber(head.unflushed) + 1)
  else
    -- An empty stream keeps its last id: it is the clock of a shard without a journal.
    stream_id = redis.call('XADD', JOURNAL, 'MAXLEN', '=', 0, '*', 'k', kind)
  end
  local id = identity(stream_id, tonumber(random))
  -- A summary is nobody's activity.
  if kind ~= 'u' then set('active', id) end
  accepted_at = string.match(stream_id, '^%d+')
  return id
end

-- Drop the oldest of the tail down to the cap, unflushed ones never. A quarter more than the cap is
-- let stand, so that not every append trims.
local function trim()
  local held = tonumber(head.held)
  if not ARCHIVED or held * 4 <= HELD_MAX * 5 then return end
  local excess = excess_of(TAIL, held, HELD_MAX, tonumber(head.unflushed), head.letter)
  if excess <= 0 then return end
  redis.call('LTRIM', TAIL, excess, -1)
  set('held', held - excess)
  set('floor', string.sub(redis.call('LINDEX', TAIL, 0), 8, 43))
end

-- The pins are all system and developer messages of the session, as long as they are complete.
local function pin(body, text)
  local role = string.sub(body, 10, 12)
  if head.pinned and (role == 'sys' or role == 'dev') then
    set('pinned', redis.call('RPUSH', PINS, text))
    if head.pinned > PINNED_MAX then
      redis.call('DEL', PINS)
      set('pinned', '')
      head.pinned = nil
    end
  end
end

-- Messages at the end of the session: bodies and random bits alternate from ARGV[first] on.
local function say(first, count)
  local ids, texts = {}, {}
  for place = 1, count do
    local body, random = ARGV[first + 2 * place - 2], ARGV[first + 2 * place - 1]
    local id = accept('m', body, random)
    ids[place] = id
    texts[place] = '{"id":"' .. id .. '",' .. string.sub(body, 2)
    pin(body, texts[place])
  end
  if not head.floor then set('floor', ids[1]) end
  if not head.born then set('born', ids[1]) end
  if not head.exists then set('erased', '') end
  set('exists', 1)
  set('last', ids[count])
  set('held', redis.call('RPUSH', TAIL, unpack(texts)))
  trim()
  return ids
end

local function live_for(lifetime)
  redis.call('PEXPIRE', HEAD, lifetime)
  redis.call('PEXPIRE', TAIL, lifetime)
  redis.call('PEXPIRE', PINS, lifetime)
end

-- Before a script answers: an archived session lives for its lifetime from now, one with unflushed
-- entries until they are flushed, one that does not exist no longer than it takes to fill it.
-- The index names the sessions that the archive has not got as they are, by their last activity;
-- without an archive all of them, by the end of their life.
local function settle()
  save()
  local lifetime = head.ttl and tonumber(head.ttl) * 1000 or tonumber(ARGV[2])
  if tonumber(head.unflushed) > 0 then
    redis.call('PERSIST', HEAD)
    redis.call('PERSIST', TAIL)
    redis.call('PERSIST', PINS)
  elseif head.exists then
    live_for(lifetime)
  end
  if journaled_bytes > 0 then redis.call('HINCRBY', SHARD, 'bytes', journaled_bytes) end
  if ARCHIVED and accepted_at then
    redis.call('ZADD', INDEX, accepted_at, ARGV[8])
  elseif not ARCHIVED and head.exists then
    local now = milliseconds()
    redis.call('ZADD', INDEX, now + lifetime, ARGV[8])
    redis.call('ZREMRANGEBYSCORE', INDEX, '-inf', now)
  end
end

-- The service repeats a call whose reply was lost, well within a minute and under the same key.
local REPEAT_MILLISECONDS = 60000

local function is_repeated()
  return redis.call('EXISTS', KEYS[8]) == 1
end

local function remember()
  redis.call('SET', KEYS[8], '1', 'PX', REPEAT_MILLISECONDS)
end

local function forget_pieces()
  local pieces = redis.call('HGET', HEAD, 'pieces')
  if pieces then
    redis.call('DEL', pieces)
    set('pieces', '')
  end
end

local forgotten_letters = 0

-- What is cleared or deleted is no dead letter any more.
local function forget_letters(first, last, through)
  local taken = take_letters(dead_of(HEAD), SHARD, through or 'g', first, last)
  if taken == 0 then return 0 end
  forgotten_letters = forgotten_letters + taken
  set('unflushed', tonumber(head.unflushed) - taken)
  set('letter', oldest_letter(dead_of(HEAD)))
  return taken
end

-- A clear does not forget the document; but where that is a letter, the archive would take it for what
-- was cleared, were it to come later: it is journaled anew.
local function renew_document(random, through)
  if forget_letters(DOCUMENT_CLASS, DOCUMENT_CLASS, through) > 0 then
    accept('s', head.document or '', random)
  end
end

local function forget_messages(cleared_through)
  forget_letters(MESSAGE_CLASS, SUMMARY_CLASS)
  redis.call('DEL', TAIL, PINS)
  tell_turn()
  forget_pieces()
  set('cleared', cleared_through)
  set('floor', ZERO)
  set('held', 0)
  set('pinned', 0)
  for _, field in ipairs({ 'last', 'lease', 'summary', 'through' }) do
    set(field, '')
    head[field] = nil
  end
end

-- After forget_messages: what is left of a session that does not exist any more.
local function end_session()
  forget_letters(DOCUMENT_CLASS, DOCUMENT_CLASS)
  for _, field in ipairs({ 'exists', 'user', 'document', 'want', 'budget', 'ttl', 'born', 'erased' }) do
    set(field, '')
    head[field] = nil
  end
  set('known', 1)
end

-- A head that a late call made of a session that is not hot stays no longer than the call.
local function leave_nothing()
  if fresh then redis.call('DEL', HEAD) end
end

-- Records that hold or name what was said are found again when the session ends.
local function index_call(lifetime)
  local now = milliseconds()
  redis.call('ZREMRANGEBYSCORE', CALLS, '-inf', now)
  redis.call('ZADD', CALLS, now + lifetime, KEYS[8])
  if redis.call('PTTL', CALLS) < lifetime then redis.call('PEXPIRE', CALLS, lifetime) end
end

-- The keys of the records; the index goes. They carry the shard's hash tag, as all of its keys do.
local function take_calls()
  local records = redis.call('ZRANGE', CALLS, 0, -1)
  redis.call('DEL', CALLS)
  return records
end

-- A turn whose messages were cleared goes on no more.
local function forget_asked()
  for _, record in ipairs(redis.call('ZRANGE', CALLS, 0, -1)) do
    if redis.call('TYPE', record).ok == 'hash' then redis.call('HDEL', record, 'asked') end
  end
end

-- What records of calls say after their session was deleted: to a turn that runs, that it was
-- cancelled; to a repeated call no answers any more.
local function cancel_calls()
  for _, record in ipairs(take_calls()) do
    if redis.call('TYPE', record).ok == 'hash' then
      redis.call('HSET', record, 'state', 'cancelled')
      redis.call('HDEL', record, 'message', 'result', 'answer', 'asked')
    end
  end
end

-- Whether an import may be committed at any moment: what the archive says now may be old then.
local function is_importing()
  return head.importing_until and tonumber(head.importing_until) > milliseconds()
end

-- Have the next reader ask the archive. What is held stays held, and so do owner, document, lifetime,
-- budget, lease and cleared-through. The epoch is new: what was read before is not filled in any more.
local function cool()
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

-- 'ok', 'not_owner', or 'cold' where only the archive knows the owner.
local function claim(user)
  if user == '' or head.user == user then return 'ok' end
  if head.user then return 'not_owner' end
  if not head.known then return 'cold' end
  set('user', user)
  return 'ok'
end

-- What is hot, with at least the newest `last` messages that are not pinned; all for -1. The tail is
-- given by who has read it already.
local function state(last, tail)
  local ttl = redis.call('PTTL', HEAD)
  local texts = tail or {}
  if tail then
    last = 0
  elseif last < 0 then
    texts = redis.call('LRANGE', TAIL, 0, -1)
  elseif last > 0 then
    texts = redis.call('LRANGE', TAIL, -last - tonumber(head.pinned or 0), -1)
  end
  local pins = {}
  if head.pinned and tonumber(head.pinned) > 0 then pins = redis.call('LRANGE', PINS, 0, -1) end
  local fields = {}
  for place, field in ipairs(FIELDS) do fields[place] = tostring(head[field] or '') end
  return { ttl, fields, pins, texts }
end

load()
