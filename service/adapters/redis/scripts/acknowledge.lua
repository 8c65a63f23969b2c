-- acknowledge: drop entries that the archive has committed from the head of a shard's journal.
--
-- KEYS  1 journal   2 shard   then head, tail, pins and index of each session in the batch
-- ARGV  1 position of the first entry   2 lowest position after the last one   3 bytes of their bodies
--       4 lifetime of an archived session, milliseconds   5 messages held at most
--       6... per session: its id, count of its entries
-- Reply 1, or 0 and nothing done when the journal no longer begins with the first entry.
-- Entries leave a journal only at its head, here or as dead letters (bury.lua), so between the first and
-- the last of them stand exactly the ones that were read.
local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)
if #first == 0 or first[1][1] ~= ARGV[1] then return 0 end

redis.call('XTRIM', KEYS[1], 'MINID', '=', ARGV[2])
if redis.call('XLEN', KEYS[1]) == 0 then
  redis.call('HSET', KEYS[2], 'bytes', 0)
else
  redis.call('HINCRBY', KEYS[2], 'bytes', -tonumber(ARGV[3]))
end

for place = 0, (#KEYS - 2) / 4 - 1 do
  local key, argument = 3 + 4 * place, 6 + 2 * place
  let_go(KEYS[key], KEYS[key + 1], KEYS[key + 2], KEYS[key + 3], ARGV[argument],
    tonumber(ARGV[argument + 1]), tonumber(ARGV[4]), tonumber(ARGV[5]))
end
return 1
