-- release: a dead letter is one no more: the archive took it after all, or it is dropped.
--
-- KEYS  1 shard   2 the letter   then, of one that can be read, head, tail, pins and index of its
--       session, and the session's letters
-- ARGV  1 id   2 'archived' or 'dropped'   3 lifetime of an archived session, milliseconds
--       4 messages held at most   5 session id   6 nonce: a new epoch of the head
-- Reply 1, or 0 and nothing done where there is no such letter any more.
-- A dropped message is gone from the hot memory too. A dropped document or summary stays there until
-- the archive has everything else of the session; from then on what the archive has is read. With its last
-- letter and entry a session gets its lifetime.
local HEAD, TAIL, PINS, INDEX, DEAD = KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local id = ARGV[1]
local kind = redis.call('HGET', KEYS[2], 'k')
if not take_letter(KEYS[1], id) then return 0 end
-- Of a session whose hot memory was lost with the letter's place in it, nothing is released.
if not HEAD or redis.call('ZREM', DEAD, id) == 0 then return 1 end
redis.call('HSET', HEAD, 'letter', oldest_letter(DEAD))

local function drop_message()
  local held = tonumber(redis.call('HGET', HEAD, 'held'))
  local place = below(TAIL, held, id)
  local text = redis.call('LINDEX', TAIL, place)
  if not text or string.sub(text, 8, 43) ~= id then return end
  redis.call('LREM', TAIL, 1, text)
  redis.call('HSET', HEAD, 'held', held - 1, 'epoch', ARGV[6])
  local pinned = redis.call('HGET', HEAD, 'pinned')
  if pinned and tonumber(pinned) > 0 then
    redis.call('HSET', HEAD, 'pinned', pinned - redis.call('LREM', PINS, 1, text))
  end
  if redis.call('HGET', HEAD, 'last') ~= id then return end
  local newest = redis.call('LINDEX', TAIL, -1)
  if newest then
    redis.call('HSET', HEAD, 'last', string.sub(newest, 8, 43))
  else
    -- Which one is the last now, the archive knows.
    redis.call('HDEL', HEAD, 'last', 'known')
  end
end

if ARGV[2] == 'dropped' then
  if kind == 'm' then drop_message() else redis.call('HSET', HEAD, 'dropped', 1) end
end
let_go(HEAD, TAIL, PINS, INDEX, ARGV[5], 1, tonumber(ARGV[3]), tonumber(ARGV[4]))
return 1
