-- acknowledge: drop entries that the archive has committed from the head of a shard's journal.
--
-- KEYS  1 journal   2 shard   then head, tail, pins and index of each session in the batch
-- ARGV  1 position of the first entry   2 lowest position after the last one   3 bytes of their bodies
--       4 lifetime of an archived session, milliseconds   5 messages held at most
--       6... per session: its id, count of its entries
-- Reply 1, or 0 and nothing done when the journal no longer begins with the first entry.
-- Entries leave a journal only at its head and only here, so between the first and the last of them
-- stand exactly the ones that were read.
local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)
if #first == 0 or first[1][1] ~= ARGV[1] then return 0 end

redis.call('XTRIM', KEYS[1], 'MINID', '=', ARGV[2])
if redis.call('XLEN', KEYS[1]) == 0 then
  redis.call('HSET', KEYS[2], 'bytes', 0)
else
  redis.call('HINCRBY', KEYS[2], 'bytes', -tonumber(ARGV[3]))
end

local held_max = tonumber(ARGV[5])

-- The same trimming as in session.lua, for a session that could not be trimmed while unflushed.
local function trim(head, tail, held, unflushed)
  local excess = math.min(held - held_max, held - unflushed)
  redis.call('LTRIM', tail, excess, -1)
  local floor = string.sub(redis.call('LINDEX', tail, 0), 8, 43)
  redis.call('HSET', head, 'held', held - excess, 'floor', floor)
end

local function settle(head, tail, pins, index, session, count)
  local fields = redis.call('HMGET', head, 'unflushed', 'held', 'ttl', 'exists')
  if not fields[1] then return end
  local unflushed = math.max(0, tonumber(fields[1]) - count)
  redis.call('HSET', head, 'unflushed', unflushed)
  local held = tonumber(fields[2])
  if held * 4 > held_max * 5 and held > unflushed then
    trim(head, tail, held, unflushed)
  end
  if unflushed == 0 then
    local lifetime = fields[3] and tonumber(fields[3]) * 1000 or tonumber(ARGV[4])
    redis.call('ZREM', index, session)
    if not fields[4] then
      -- Deleted: the archive says so from here on, and nothing names the session any more.
      redis.call('DEL', head, tail, pins)
      return
    end
    redis.call('PEXPIRE', head, lifetime)
    redis.call('PEXPIRE', tail, lifetime)
    redis.call('PEXPIRE', pins, lifetime)
  end
end

for place = 0, (#KEYS - 2) / 4 - 1 do
  local key, argument = 3 + 4 * place, 6 + 2 * place
  settle(KEYS[key], KEYS[key + 1], KEYS[key + 2], KEYS[key + 3], ARGV[argument],
    tonumber(ARGV[argument + 1]))
end
return 1
