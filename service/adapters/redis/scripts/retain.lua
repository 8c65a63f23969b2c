-- retain: take out of the hot memory what the archive keeps no longer.
--
-- ARGV  9 last id that is kept no longer
-- Reply {'done'}
-- Nothing unflushed is dropped but dead letters, and no lifetime slides. The epoch is new: what was read from the
-- archive before is not filled in any more. Repeated, it changes nothing more.
if fresh then
  leave_nothing()
  return { 'done' }
end
local through = ARGV[9]

local function drop(list, most)
  local gone = 0
  while gone < most do
    local text = redis.call('LINDEX', list, gone)
    if not text or string.sub(text, 8, 43) > through then break end
    gone = gone + 1
  end
  if gone > 0 then redis.call('LTRIM', list, gone, -1) end
  return gone
end

forget_letters(MESSAGE_CLASS, SUMMARY_CLASS, through)
renew_document(0, through)

set('epoch', ARGV[1])
if (head.cleared or ZERO) < through then set('cleared', through) end
local held = tonumber(head.held)
set('held', held - drop(TAIL, held - tonumber(head.unflushed)))
if head.pinned then
  local pinned = tonumber(head.pinned)
  set('pinned', pinned - drop(PINS, pinned))
end
-- All that was below the floor is gone, and the tail has the rest.
if head.floor and head.floor <= through then set('floor', ZERO) end
if head.last and head.last <= through then set('last', '') end
if head.through and head.through <= through then
  set('summary', '')
  set('through', '')
end
save()
if forgotten_letters > 0 then
  if tonumber(head.unflushed) == 0 then redis.call('ZREM', INDEX, ARGV[8]) end
  settle()
end
return { 'done' }
