-- finish: a turn's last step. Stores the answer and the result, frees the session.
--
-- KEYS  8 once: the record of this call, made by begin
-- ARGV  9 lease token   10 lifetime of the record, milliseconds   11 'done' or 'failed'
--       12 result for a repeated call   13 body of the answer or ''   14 random bits
--       15 what the turn can go on with, or ''
-- Reply {'stored', answer id or ''} | {'cancelled'} | {'lost'}
-- Only the owner of the lease writes. An answer to an accepted message is accepted also where the
-- backlog is full. Pieces of it for readers elsewhere go: they find the result. Cancelled: the
-- session was cleared or deleted meanwhile; nothing was said then, and what was taken out of the
-- record stays away.
local record = redis.call('HMGET', KEYS[8], 'state', 'token', 'message', 'answer', 'place')
if record[1] == 'cancelled' and record[2] == ARGV[9] then
  leave_nothing()
  return { 'cancelled' }
end
if record[2] == ARGV[9] and (record[1] == 'done' or record[1] == 'failed') then
  -- A write of this connection, for a caller who waits for the disk: it comes after the answer.
  redis.call('HSET', KEYS[8], 'state', record[1])
  return { 'stored', record[4] or '' }
end

if head.lease ~= ARGV[9] then
  local cleared = record[3] and (head.cleared or ZERO) >= record[3]
  if cleared and record[2] == ARGV[9] then redis.call('HSET', KEYS[8], 'state', 'cancelled') end
  leave_nothing()
  return { cleared and 'cancelled' or 'lost' }
end

forget_pieces()
local answer = ''
if ARGV[13] ~= '' then answer = say(13, 1)[1] end
set('lease', '')
head.lease = nil
redis.call('HSET', KEYS[8], 'state', ARGV[11], 'result', ARGV[12], 'answer', answer)
if ARGV[15] ~= '' then redis.call('HSET', KEYS[8], 'asked', ARGV[15]) end
redis.call('PEXPIRE', KEYS[8], ARGV[10])
if record[5] then redis.call('PEXPIRE', record[5], ARGV[10]) end
index_call(tonumber(ARGV[10]))
settle()
return { 'stored', answer }
