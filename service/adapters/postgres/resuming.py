"""Turns that go on with results of tools, where PostgreSQL holds everything."""

from typing import Final, LiteralString
from uuid import UUID

import msgspec

from service.adapters.postgres.calls import CallRecord
from service.adapters.postgres.door import Connection
from service.adapters.postgres.keys import session_key
from service.adapters.postgres.session_rows import SessionRow
from service.domain.errors import TurnNotFound, TurnNotWaiting
from service.domain.ids import MessageId, TurnId
from service.domain.sessions import SessionRef
from service.ports import Begin, Resumption

# The call that the turn goes by: the one that made the calls, or one with results of before.
LATEST_RUN: Final[LiteralString] = """
SELECT operation, key, fingerprint, state, token, ids, answer_id
FROM calls
WHERE session_key = $1 AND tenant = $2 AND turn_id = $3 AND expires_at > clock_timestamp()
"""

# From now on the turn goes by another call. What this one was answered stays for its repeats.
LEAVE_TURN: Final[LiteralString] = """
UPDATE calls SET turn_id = NULL, asked = ''
WHERE session_key = $1 AND tenant = $2 AND turn_id = $3
"""

SAID_SINCE: Final[LiteralString] = """
SELECT EXISTS (
    SELECT 1 FROM messages
    WHERE session_key = $1 AND tenant = $2 AND id > $3 AND role NOT IN ('system', 'developer')
)
"""


class EarlierRun(msgspec.Struct, frozen=True, kw_only=True):
    """What a turn goes on from. ``answers``: its calls are answered for the first time."""

    record: CallRecord
    answers: bool


async def earlier_run(
    connection: Connection, command: Begin, record: CallRecord | None, live_token: str | None
) -> EarlierRun:
    """Under the session's lock; ``record`` is that of this very call, if it was made before.

    Raises TurnNotFound and TurnNotWaiting.
    """
    resumes, place = _resumption(command), _place(command.ref)
    row = await connection.fetchrow(LATEST_RUN, *place, command.turn_id)
    if row is None:
        raise TurnNotFound
    if record is not None and record.turn_id == command.turn_id:
        return EarlierRun(record=record, answers=False)

    calls_id = None if row["answer_id"] is None else MessageId(str(row["answer_id"]))
    answers = row["state"] == "done" and calls_id is not None and calls_id == resumes.calls_id
    fingerprint = command.once.fingerprint if command.once else resumes.fingerprint
    failed = row["state"] != "done" and row["token"] != live_token
    if not answers and not (failed and row["fingerprint"] == fingerprint):
        raise TurnNotWaiting
    ids = tuple(MessageId(str(identity)) for identity in row["ids"])
    return EarlierRun(
        record=CallRecord(
            state="interrupted",
            token="",
            ids=ids,
            answer_id=None,
            result=b"",
            turn_id=command.turn_id,
        ),
        answers=answers,
    )


async def check_goes_on(
    connection: Connection, command: Begin, row: SessionRow, earlier: EarlierRun
) -> None:
    """Raises TurnNotWaiting where the session was cleared or went on without the turn."""
    if earlier.record.ids[0] <= row.cleared_through:
        raise TurnNotWaiting
    if not earlier.answers:
        return
    calls_id = _resumption(command).calls_id
    if await connection.fetchval(SAID_SINCE, *_place(command.ref), calls_id):
        raise TurnNotWaiting


async def leave_turn(connection: Connection, ref: SessionRef, turn_id: TurnId) -> None:
    await connection.execute(LEAVE_TURN, *_place(ref), turn_id)


def _resumption(command: Begin) -> Resumption:
    if command.resumes is None:
        raise AssertionError("a turn goes on with a resumption")
    return command.resumes


def _place(ref: SessionRef) -> tuple[UUID, str]:
    return session_key(ref), ref.tenant
