-- begin: a turn's first step, and its next one where it goes on with results of tools. Takes the
-- session, stores the user's message or the results, returns the history before the user's message.
--
-- KEYS  8 once: the record of this call (hash: fingerprint, state, token, turn, message, result, answer)
--       9 place of the turn: names the record by the turn's id
--       10 who waits for the session (hash: lease token to arrival, microseconds, and last look,
--       milliseconds)
-- ARGV  9 user or ''   10 fingerprint   11 lifetime of the record, milliseconds   12 lease token
--       13 lease milliseconds   14 turn id
--       15 history needed: messages, -1 for all, -2 for as many as the token budget takes
--       16 whose decides: '0' 15, '1' before it the session's own context, 'window' that one where it
--       is a window   17 '1' when what is hot will do
--       18 tokens of the prompt without the session   19 token budget or ''
--       20 '1' when the session's own budget decides before 19   21 body   22 random bits   23 '1' to wait
--       24 longest time between two looks of who waits, milliseconds   25 at most so many wait
--       26 channel on which the turn's process hears that it may be to end
--       27 '1' where the turn goes on: 14 is its id then   28 message with the calls that are
--       answered, '' for none   29 what it goes on with   30... bodies of the results and random
--       bits alternate
-- Reply {'begun', user message id, state, turn id} | {'replayed', result, answer id}
--       | {'running', turn id} | {'reused'}
--       | {'busy', milliseconds left} | {'not_owner'} | {'cold', state} | {'full'} | {'too_many'}
--       | {'over', budget} | {'missing'} | {'not_waiting'}
-- The lease of a dead owner ends by itself; a failed or interrupted call is taken up again without a
-- second user message and under the same turn id, unless that message was cleared away. Calls are
-- answered once, and only while nothing but system and developer messages was said since; results
-- of a failed or interrupted run are taken up again as well, without being said twice.
local now = milliseconds()
local GOES_ON = ARGV[27] == '1'

local function read(key)
  local names = { 'fingerprint', 'state', 'token', 'message', 'result', 'answer', 'turn', 'place' }
  local values, found = redis.call('HMGET', key, unpack(names)), {}
  for place, name in ipairs(names) do found[name] = values[place] or nil end
  return found
end

local record = read(KEYS[8])
if record.fingerprint and record.fingerprint ~= ARGV[10] then return { 'reused' } end
if record.state == 'done' then
  -- A write of this connection, for a caller who waits for the disk: it comes after the answer.
  redis.call('HSET', KEYS[8], 'state', 'done')
  return { 'replayed', record.result, record.answer or '' }
end

-- First come, first served: whoever does not look any more is forgotten.
local function is_first()
  local waiting, first, arrival = redis.call('HGETALL', KEYS[10]), nil, nil
  for place = 1, #waiting, 2 do
    local arrived, looked = string.match(waiting[place + 1], '^(%d+) (%d+)$')
    if now - tonumber(looked) > tonumber(ARGV[24]) and waiting[place] ~= ARGV[12] then
      redis.call('HDEL', KEYS[10], waiting[place])
    elseif not arrival or tonumber(arrived) < arrival then
      first, arrival = waiting[place], tonumber(arrived)
    end
  end
  return not first or first == ARGV[12]
end

local function busy(left)
  local own = redis.call('HGET', KEYS[10], ARGV[12])
  if ARGV[23] == '1' and (own or redis.call('HLEN', KEYS[10]) < tonumber(ARGV[25])) then
    local time = redis.call('TIME')
    local arrived = own and string.match(own, '^%d+') or time[1] .. string.format('%06d', time[2])
    redis.call('HSET', KEYS[10], ARGV[12], arrived .. ' ' .. now)
    redis.call('PEXPIRE', KEYS[10], 30 * ARGV[24])
  end
  return { 'busy', left }
end

local leased = head.lease and tonumber(head.lease_until) > now
local ours = leased and head.lease == ARGV[12]

-- The turn is named by its latest call: the one that made the calls, or one with results of before.
local answers, latest = false, nil
if GOES_ON then
  latest = redis.call('GET', KEYS[9])
  local run = latest and read(latest) or {}
  if run.turn ~= ARGV[14] or not run.message then return { 'missing' } end
  if not record.fingerprint or latest ~= KEYS[8] then
    answers = run.state == 'done' and ARGV[28] ~= '' and run.answer == ARGV[28]
    local runs = leased and run.token == head.lease
    local again = run.state ~= 'done' and not runs and run.fingerprint == ARGV[10]
    if not answers and not again then return { 'not_waiting' } end
    record = { message = run.message, turn = run.turn, place = run.place }
  end
end

if leased and not ours then
  if record.token == head.lease then return { 'running', record.turn or '' } end
  return busy(tonumber(head.lease_until) - now)
end
if not ours and not GOES_ON and redis.call('EXISTS', KEYS[10]) == 1 and not is_first() then
  return busy(1000)
end

local owner = claim(ARGV[9])
if owner == 'not_owner' then return { 'not_owner' } end

local need = tonumber(ARGV[15])
if head.want and (ARGV[16] == '1' or (ARGV[16] == 'window' and tonumber(head.want) >= 0)) then
  need = tonumber(head.want)
end
local budget = ARGV[20] == '1' and head.budget or ARGV[19]

-- By the counts that messages are stored with: behind the content comes nothing else of that name.
local function fills_budget(texts)
  local left = tonumber(budget)
  for place = #texts, 1, -1 do
    if left <= 0 then break end
    left = left - (tonumber(string.match(texts[place], '.*"token_count":(%d+)')) or 0)
  end
  return left <= 0
end

-- The history stands before the user's message: for one that is taken up again, who knows where.
local taken_up = record.message and head.known and head.exists
  and record.message > (head.cleared or ZERO) and record.message >= (head.born or ZERO)
local span = (taken_up or not head.pinned or need == -2) and -1 or need
local tail = span == -1 and redis.call('LRANGE', TAIL, 0, -1) or nil
local earlier, count = tail, tonumber(head.held)
if taken_up then
  earlier = {}
  for _, text in ipairs(tail) do
    if string.sub(text, 8, 43) < record.message then earlier[#earlier + 1] = text end
  end
  count = #earlier
end
local complete = head.known and (head.floor == ZERO
  or (head.pinned and head.floor and ((need == -2 and fills_budget(earlier))
    or (need >= 0 and count >= need + tonumber(head.pinned)))))
if owner == 'cold' or not head.known then return { 'cold', state(span, tail) } end
if GOES_ON and not taken_up then return { 'not_waiting' } end
if budget ~= '' and tonumber(ARGV[18]) > tonumber(budget) then return { 'over', budget } end
-- The archive must answer before anything is written.
if not complete and ARGV[17] == '0' then return { 'cold', state(span, tail) } end

local before = state(span, tail)
if answers then
  -- What stands between the calls and what is hot, the archive knows.
  if not head.floor or head.floor > ARGV[28] then return { 'cold', before } end
  for _, text in ipairs(tail) do
    local role = string.sub(text, 54, 56)
    if string.sub(text, 8, 43) > ARGV[28] and role ~= 'sys' and role ~= 'dev' then
      return { 'not_waiting' }
    end
  end
  local results, bytes = (#ARGV - 29) / 2, 0
  for place = 30, #ARGV, 2 do bytes = bytes + #ARGV[place] end
  if not has_room(results, bytes) then return { 'full' } end
  if not ARCHIVED and tonumber(head.held) + results > HELD_MAX then return { 'too_many' } end
  say(30, results)
end
local message = taken_up and record.message
if not message then
  if not has_room(1, #ARGV[21]) then return { 'full' } end
  if not ARCHIVED and tonumber(head.held) + 1 > HELD_MAX then return { 'too_many' } end
  message = say(21, 1)[1]
end
forget_pieces()
redis.call('HDEL', KEYS[10], ARGV[12])
set('lease', ARGV[12])
set('listener', ARGV[26])
set('lease_until', now + tonumber(ARGV[13]))
local turn = taken_up and record.turn or ARGV[14]
set('turn', turn)
redis.call('HSET', KEYS[8], 'fingerprint', ARGV[10], 'state', 'running', 'token', ARGV[12],
  'message', message, 'turn', turn)
redis.call('HDEL', KEYS[8], 'result', 'answer', 'asked')
if GOES_ON then
  if latest ~= KEYS[8] then redis.call('HDEL', latest, 'asked') end
  redis.call('HSET', KEYS[8], 'asked', ARGV[29])
end
redis.call('PEXPIRE', KEYS[8], ARGV[11])
if turn == ARGV[14] then
  redis.call('SET', KEYS[9], KEYS[8], 'PX', ARGV[11])
  redis.call('HSET', KEYS[8], 'place', KEYS[9])
elseif record.place then
  redis.call('PEXPIRE', record.place, ARGV[11])
end
index_call(tonumber(ARGV[11]))
settle()
return { 'begun', message, before, turn }
