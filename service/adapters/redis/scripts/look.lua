-- look: how a session stands, without its messages, and what time it is here.
--
-- Reply {milliseconds of this clock, state without messages}
-- A session that is not hot stays so.
leave_nothing()
return { milliseconds(), state(0) }
