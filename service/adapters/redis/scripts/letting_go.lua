-- letting_go: what scripts share that let go of what the archive has, or refused; prepended to them.
--
-- A dead letter is a hash of its own, {tag}:letter:<id>, named by {tag}:letters (zset: id by the time
-- at which it became one, milliseconds) and by {tag}:dead:<session> (zset: id by class). While a
-- session has letters they count as unflushed, and its tail keeps all from the oldest letter of a
-- message on, whose id is `letter` in the head.
local MESSAGE_CLASS, SUMMARY_CLASS, DOCUMENT_CLASS = 0, 1, 2

local function tag_of(key) return string.match(key, '^{[^}]*}') end

-- Both names of a session differ in one word, behind the hash tag.
local function dead_of(head) return (string.gsub(head, ':head:', ':dead:', 1)) end

-- How many messages of a tail are below an id: it is in the order of ids.
local function below(tail, held, id)
  local low, high = 0, held
  while low < high do
    local middle = math.floor((low + high) / 2)
    if string.sub(redis.call('LINDEX', tail, middle), 8, 43) < id then
      low = middle + 1
    else
      high = middle
    end
  end
  return low
end

-- How many of the oldest messages may leave the tail: neither what is unflushed nor what stands behind
-- a dead letter, for below the floor everything is archived.
local function excess_of(tail, held, held_max, unflushed, letter)
  local excess = math.min(held - held_max, held - unflushed)
  if excess > 0 and letter and letter ~= '' then
    excess = math.min(excess, below(tail, held, letter))
  end
  return excess
end

-- Have the next reader ask the archive for settings and summary: it has all of the session, but for what
-- was dropped. The epoch is new: what was read before is not filled in any more.
local function take_back(head, epoch)
  redis.call('HDEL', head, 'dropped', 'document', 'want', 'budget', 'ttl', 'summary', 'through', 'known')
  redis.call('HSET', head, 'epoch', epoch .. '+')
end

-- After `count` entries or letters of a session have gone.
local function let_go(head, tail, pins, index, session, count, lifetime, held_max)
  local fields = redis.call('HMGET', head, 'unflushed', 'held', 'ttl', 'exists', 'letter',
    'dropped', 'epoch')
  if not fields[1] then return end
  local unflushed = math.max(0, tonumber(fields[1]) - count)
  redis.call('HSET', head, 'unflushed', unflushed)
  local held = tonumber(fields[2])
  if held * 4 > held_max * 5 then
    local excess = excess_of(tail, held, held_max, unflushed, fields[5])
    if excess > 0 then
      redis.call('LTRIM', tail, excess, -1)
      local floor = string.sub(redis.call('LINDEX', tail, 0), 8, 43)
      redis.call('HSET', head, 'held', held - excess, 'floor', floor)
    end
  end
  if unflushed == 0 then
    redis.call('ZREM', index, session)
    if not fields[4] then
      -- Deleted: the archive says so from here on, and nothing names the session any more.
      redis.call('DEL', head, tail, pins)
      return
    end
    if fields[6] then take_back(head, fields[7]) end
    local milliseconds = fields[3] and tonumber(fields[3]) * 1000 or lifetime
    redis.call('PEXPIRE', head, milliseconds)
    redis.call('PEXPIRE', tail, milliseconds)
    redis.call('PEXPIRE', pins, milliseconds)
  end
end

-- Take a letter out of its shard; what it says is gone with it. False where there is none.
local function take_letter(shard, id)
  local tag = tag_of(shard)
  local letter = tag .. ':letter:' .. id
  if redis.call('ZREM', tag .. ':letters', id) == 0 then return false end
  redis.call('HINCRBY', shard, 'letters', -1)
  redis.call('HINCRBY', shard, 'letter_bytes', -redis.call('HSTRLEN', letter, 'b'))
  redis.call('DEL', letter)
  return true
end

-- Id of the oldest letter of a message, or ''.
local function oldest_letter(dead)
  local found = redis.call('ZRANGEBYSCORE', dead, MESSAGE_CLASS, MESSAGE_CLASS, 'LIMIT', 0, 1)
  return found[1] or ''
end

-- Take the letters of a session up to an id, from a class to another, away; how many there were.
local function take_letters(dead, shard, through, first, last)
  local taken = 0
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', dead, first, last)) do
    if id <= through then
      redis.call('ZREM', dead, id)
      if take_letter(shard, id) then taken = taken + 1 end
    end
  end
  return taken
end

