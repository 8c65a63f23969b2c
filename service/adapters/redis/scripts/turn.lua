-- turn: how a turn stands; where so wanted it is asked to end.
--
-- KEYS  8 place of the turn: names the record of its call
-- ARGV  9 turn id   10 '1' to ask it to end   11 '1' to be told what it goes on with
-- Reply {'missing'} | {'running' | 'cancelled' | 'interrupted', user message id, asked or ''}
--       | {'ended', user message id, asked or '', result, answer id or '', 1 if cleared away since}
-- A turn whose lease has ended is interrupted for good: who is told so is not told otherwise later,
-- for its owner, should it live, has no lease to end it with.
local name = redis.call('GET', KEYS[8])
local record = {}
if name then record = redis.call('HMGET', name, 'state', 'token', 'message', 'result', 'answer', 'turn') end
local status, token, message = record[1], record[2], record[3]
if record[6] ~= ARGV[9] or not message then
  leave_nothing()
  return { 'missing' }
end
local cleared = (head.cleared or ZERO) >= message
local asked = ARGV[11] == '1' and redis.call('HGET', name, 'asked') or ''
if status == 'done' or status == 'failed' then
  leave_nothing()
  return { 'ended', message, asked, record[4] or '', record[5] or '', cleared and 1 or 0 }
end
if cleared or status == 'cancelled' then
  leave_nothing()
  return { 'cancelled', message, asked }
end
if head.lease == token and tonumber(head.lease_until) > milliseconds() then
  if ARGV[10] == '1' then
    redis.call('HSET', HEAD, 'stop', token)
    tell_turn()
  end
  return { 'running', message, asked }
end
redis.call('HSET', name, 'state', 'interrupted')
forget_pieces()
if head.lease == token then
  tell_turn()
  set('lease', '')
end
save()
leave_nothing()
return { 'interrupted', message, asked }
