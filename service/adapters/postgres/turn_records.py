"""Turns by their ids, where PostgreSQL holds everything."""

from typing import Final, LiteralString

from service.adapters.postgres.door import Connection
from service.adapters.postgres.keys import session_key
from service.adapters.postgres.session_rows import lock_session
from service.domain.ids import MessageId, TurnId
from service.domain.sessions import SessionRef
from service.ports import TurnRecord

FIND_TURN: Final[LiteralString] = """
SELECT operation, key, state, token, ids[1] AS message_id, answer_id, result,
       CASE WHEN $4 THEN asked ELSE '' END AS asked
FROM calls
WHERE session_key = $1 AND tenant = $2 AND turn_id = $3 AND expires_at > clock_timestamp()
"""

# A lease that is alive; it is asked to end where so wanted.
LIVE_LEASE: Final[LiteralString] = """
UPDATE turn_leases
SET cancelled = cancelled OR $4
WHERE session_key = $1 AND tenant = $2 AND token = $3 AND expires_at > clock_timestamp()
RETURNING true
"""

# Told once, it stays so: its owner has no lease to end it with.
INTERRUPT: Final[LiteralString] = """
WITH freed AS (
    DELETE FROM turn_leases WHERE session_key = $1 AND tenant = $2 AND token = $5
)
UPDATE calls SET state = 'interrupted'
WHERE session_key = $1 AND tenant = $2 AND operation = $3 AND key = $4
"""


async def find_turn(
    connection: Connection, ref: SessionRef, turn_id: TurnId, *, cancel: bool, asked: bool
) -> TurnRecord | None:
    """Under the session's lock, so that a turn's end comes before it or after it."""
    place = (session_key(ref), ref.tenant)
    session = await lock_session(connection, ref)
    row = await connection.fetchrow(FIND_TURN, *place, turn_id, asked)
    if session is None or not session.exists or row is None:
        return None
    message_id, kept = MessageId(str(row["message_id"])), row["asked"]
    if row["state"] in {"done", "failed"}:
        answer = row["answer_id"]
        return TurnRecord(
            state="ended",
            user_message_id=message_id,
            result=row["result"],
            message_id=None if answer is None else MessageId(str(answer)),
            cleared=message_id <= session.cleared_through,
            asked=kept,
        )
    if message_id <= session.cleared_through:
        return TurnRecord(state="cancelled", user_message_id=message_id, asked=kept)
    if await connection.fetchval(LIVE_LEASE, *place, row["token"], cancel):
        return TurnRecord(state="running", user_message_id=message_id, asked=kept)
    await connection.execute(INTERRUPT, *place, row["operation"], row["key"], row["token"])
    return TurnRecord(state="interrupted", user_message_id=message_id, asked=kept)
