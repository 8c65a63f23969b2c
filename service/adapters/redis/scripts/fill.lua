-- fill: take archived state into the hot memory, if nothing moved since it was read.
--
-- ARGV  9 epoch as seen   10 floor as seen or ''   23 messages held as seen
--       11 '1' when the archive has the session, '0' when not   12 its user   13 its document
--       14 window that its document asks for or ''   15 its lifetime in seconds or ''
--       16 id of its beginning   17 its cleared-through id   18 id of its last activity
--       19 id of its last message
--       20 new floor, or '' to leave the tail as it is
--       21 count of pins, -1 when they were not looked up   22 count of messages
--       24 token budget that its document sets or ''
--       25 its summary or ''   26 last id that the summary covers or ''
--       27... pins, then messages, oldest first
-- Reply {'filled', remaining milliseconds, '' unless it exists, own lifetime or ''} | {'moved'}
-- The epoch tells that the head is the same since, so every append since is in the tail above the
-- floor; floor and count tell that nothing was trimmed or said. Then what is below the floor is as it
-- was read, and the pins are all there are. What is known of a session without its messages does not
-- change by being said more in: a cold one is cleared by nobody.
if head.epoch ~= ARGV[9] or is_importing() then return { 'moved' } end
if ARGV[20] ~= '' and ((head.floor or '') ~= ARGV[10] or head.held ~= ARGV[23]) then
  return { 'moved' }
end

if not head.known then
  set('known', 1)
  if ARGV[11] == '1' then
    set('exists', 1)
    set('born', ARGV[16])
    if not head.user and ARGV[12] ~= '' then set('user', ARGV[12]) end
    if not head.document and ARGV[13] ~= '' then
      set('document', ARGV[13])
      if ARGV[14] ~= '' then set('want', ARGV[14]) end
      if ARGV[15] ~= '' then set('ttl', ARGV[15]) end
      if ARGV[24] ~= '' then set('budget', ARGV[24]) end
    end
    if not head.active then set('active', ARGV[18]) end
    if not head.summary and ARGV[26] ~= '' and ARGV[26] > (head.cleared or ZERO) then
      set('summary', ARGV[25])
      set('through', ARGV[26])
    end
    if not head.last and ARGV[19] > (head.cleared or ZERO) then set('last', ARGV[19]) end
  end
  if not head.cleared and ARGV[17] ~= ZERO then set('cleared', ARGV[17]) end
end

local pins, messages = tonumber(ARGV[21]), tonumber(ARGV[22])
if ARGV[20] ~= '' then
  local first = 27 + math.max(pins, 0)
  for place = messages, 1, -1 do redis.call('LPUSH', TAIL, ARGV[first + place - 1]) end
  set('held', tonumber(head.held) + messages)
  set('floor', ARGV[20])
  redis.call('DEL', PINS)
  if pins < 0 or pins >= PINNED_MAX then
    set('pinned', '')
    head.pinned = nil
  else
    for place = 1, pins do redis.call('RPUSH', PINS, ARGV[26 + place]) end
    set('pinned', pins)
  end
end
settle()
return { 'filled', redis.call('PTTL', HEAD), head.exists or '', head.ttl or '' }
