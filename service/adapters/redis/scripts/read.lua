-- read: what is hot of a session; slides its lifetime.
--
-- ARGV  9 newest messages to return, -1 for all
-- Reply {'state', {remaining milliseconds, fields, pins, messages}}
settle()
return { 'state', state(tonumber(ARGV[9])) }
