"""Turns where PostgreSQL holds everything: a lease is a row, no connection waits for the model."""

from collections.abc import Sequence
from typing import Final, Literal, LiteralString

from service.adapters.postgres.calls import (
    Call,
    CallRecord,
    CallState,
    find_record,
    keep_record,
    keyed_call,
    own_call,
)
from service.adapters.postgres.door import Connection, PostgresDoor
from service.adapters.postgres.keys import session_key
from service.adapters.postgres.resuming import check_goes_on, earlier_run, leave_turn
from service.adapters.postgres.session_rows import (
    SessionRow,
    claim_messages,
    lock_or_make_session,
    lock_session,
    say,
)
from service.adapters.postgres.transcripts import read_newest
from service.adapters.postgres.turn_leases import (
    check_lease,
    find_lease,
    free_lease,
    renew_lease,
    take_lease,
)
from service.adapters.postgres.turn_records import find_turn
from service.adapters.postgres.turn_waits import WAIT_NO_MORE, others_come_first, wait_on
from service.adapters.postgres.vectors import Worded, worded
from service.core.stops import TurnStops
from service.domain.errors import SessionBusy
from service.domain.ids import MessageId, TurnId
from service.domain.sessions import SessionRef, decode_document
from service.domain.summaries import decode_summary
from service.ports import (
    Begin,
    Begun,
    Clock,
    Finish,
    Finished,
    LeaseState,
    Once,
    Recent,
    Replayed,
    TurnRecord,
    check_cost,
    needed,
)

UNKEYED_SECONDS: Final = 300
"""How long a turn without a client's key is remembered, for the service's own repeats: longer than
any turn."""

CLAIM: Final[LiteralString] = """
UPDATE sessions SET user_id = $3
WHERE session_key = $1 AND tenant = $2 AND user_id IS NULL
"""

END_RECORD: Final[LiteralString] = """
UPDATE calls
SET state = $5, result = $6, answer_id = $7, asked = COALESCE($9, asked),
    expires_at = clock_timestamp() + make_interval(secs => $8)
WHERE session_key = $1 AND tenant = $2 AND operation = $3 AND key = $4
"""


class PostgresTurns:
    """Turns in PostgreSQL alone: each step is one transaction under the session's lock."""

    def __init__(
        self, door: PostgresDoor, clock: Clock, *, once_seconds: int, lease_seconds: float
    ) -> None:
        self._door = door
        self._clock = clock
        self._once_seconds = once_seconds
        self._lease_seconds = lease_seconds
        self._stops = TurnStops(listening=False)

    @property
    def stops(self) -> TurnStops:
        # Nobody tells: LISTEN holds a connection of each process, which poolers in transaction
        # mode do not keep, and commits that NOTIFY wait for one another.
        return self._stops

    async def begin(self, command: Begin) -> Begun | Replayed:
        resumes = command.resumes
        fingerprint = resumes.fingerprint if resumes else "-"
        call = self._call(
            command.ref, command.once, command.lease_token, fingerprint, goes_on=resumes is not None
        )
        said = await worded(resumes.bodies if resumes else [command.body])
        if command.waits:
            await self._door.settled(lambda it: wait_on(it, command))
        return await self._door.settled(lambda it: self._begin(it, command, said, call))

    async def renew(self, ref: SessionRef, lease_token: str) -> LeaseState:
        async with self._door.connection() as connection:
            return await renew_lease(connection, ref, lease_token, self._lease_seconds)

    async def find(
        self, ref: SessionRef, turn_id: TurnId, *, cancel: bool = False, asked: bool = False
    ) -> TurnRecord | None:
        return await self._door.settled(
            lambda it: find_turn(it, ref, turn_id, cancel=cancel, asked=asked)
        )

    async def finish(self, command: Finish) -> Finished:
        return await self._ended(command, "done")

    async def fail(self, command: Finish) -> Finished:
        return await self._ended(command, "failed")

    async def _begin(
        self, connection: Connection, command: Begin, said: Sequence[Worded], call: Call
    ) -> Begun | Replayed:
        row = await lock_or_make_session(connection, command.ref)
        record = await find_record(connection, call)
        if record is not None and record.state == "done":
            return Replayed(result=record.result, message_id=record.answer_id)
        lease, earlier = await find_lease(connection, command.ref), None
        if command.resumes is not None:
            live = lease.token if lease and lease.seconds_left > 0 else None
            earlier = await earlier_run(connection, command, record, live)
            record = earlier.record
        check_lease(lease, record, command.lease_token)
        ours = earlier is not None or (lease is not None and lease.token == command.lease_token)
        if not ours and await others_come_first(connection, command.ref, command.lease_token):
            raise SessionBusy(retry_after_seconds=1)
        row.check_owner(command.user_id)
        if earlier is not None:
            await check_goes_on(connection, command, row, earlier)
        check_cost(command, decode_document(row.document))

        # A failed or interrupted turn goes on from its message, unless that was cleared away.
        taken_up = _message_after(record, row.cleared_through)
        history = await _history(connection, command, row, before=taken_up)
        if earlier is not None and earlier.answers:
            await say(connection, row, said, self._clock.milliseconds())
        if taken_up is None:
            now = self._clock.milliseconds()
            [message_id] = await say(connection, row, said, now, user_id=command.user_id)
        else:
            message_id = taken_up
            await _claim(connection, row, command.user_id)
        turn_id = (record.turn_id if record and taken_up else None) or command.turn_id
        await self._take(connection, command, call, message_id, turn_id)
        return Begun(user_message_id=message_id, turn_id=turn_id, history=history)

    async def _take(
        self,
        connection: Connection,
        command: Begin,
        call: Call,
        message_id: MessageId,
        turn_id: TurnId,
    ) -> None:
        token = command.lease_token
        await take_lease(connection, command.ref, token, turn_id, self._lease_seconds)
        if command.waits:
            place = (session_key(command.ref), command.ref.tenant)
            await connection.execute(WAIT_NO_MORE, *place, token)
        asked = b""
        if command.resumes is not None:
            asked = command.resumes.asked
            await leave_turn(connection, command.ref, turn_id)
        await keep_record(
            connection,
            call,
            (message_id,),
            state="running",
            token=token,
            turn_id=turn_id,
            asked=asked,
        )

    async def _ended(self, command: Finish, state: CallState) -> Finished:
        goes_on = command.resumed or command.asked != b""
        call = self._call(command.ref, command.once, command.lease_token, goes_on=goes_on)
        said = await worded([] if command.body is None else [command.body])
        return await self._door.settled(lambda it: self._end(it, command, said, call, state))

    async def _end(
        self,
        connection: Connection,
        command: Finish,
        said: Sequence[Worded],
        call: Call,
        state: CallState,
    ) -> Finished:
        row = await lock_session(connection, command.ref)
        record = await find_record(connection, call)
        token = command.lease_token
        if record is not None and record.token == token and record.state in {"done", "failed"}:
            return Finished(message_id=record.answer_id, outcome="stored")

        if row is None or not await free_lease(connection, command.ref, token):
            return Finished(message_id=None, outcome=_why_not(row, record))
        answer_id: MessageId | None = None
        if said:
            [answer_id] = await say(connection, row, said, self._clock.milliseconds())
        await connection.execute(
            END_RECORD,
            session_key(command.ref),
            command.ref.tenant,
            *(call.operation, call.key, state, command.result, answer_id, call.lifetime_seconds),
            command.asked or None,
        )
        return Finished(message_id=answer_id, outcome="stored")

    def _call(
        self,
        ref: SessionRef,
        once: Once | None,
        lease_token: str,
        fingerprint: str = "-",
        *,
        goes_on: bool,
    ) -> Call:
        """A turn that waits for results of tools, or has got some, is remembered as with a key."""
        if once is None:
            seconds = max(self._once_seconds, UNKEYED_SECONDS) if goes_on else UNKEYED_SECONDS
            return own_call(ref, key=lease_token, lifetime_seconds=seconds, fingerprint=fingerprint)
        return keyed_call(ref, once, max(self._once_seconds, UNKEYED_SECONDS))


def _message_after(record: CallRecord | None, cleared_through: MessageId) -> MessageId | None:
    """The user message of an earlier run that still stands."""
    if record is None or record.ids[0] <= cleared_through:
        return None
    return record.ids[0]


async def _history(
    connection: Connection, command: Begin, row: SessionRow, *, before: MessageId | None
) -> Recent:
    document = decode_document(row.document)
    messages, pinned = await read_newest(
        connection,
        command.ref,
        needed(command, document),
        above=row.cleared_through,
        before=before,
    )
    return Recent(
        exists=row.exists,
        user_id=row.user_id or command.user_id,
        document=document,
        messages=messages,
        pinned=pinned,
        ttl=None,
        summary=decode_summary(row.summary),
    )


async def _claim(connection: Connection, row: SessionRow, user_id: str | None) -> None:
    if user_id is not None and row.user_id is None:
        await claim_messages(connection, row, user_id)
        await connection.execute(CLAIM, session_key(row.ref), row.ref.tenant, user_id)


def _why_not(row: SessionRow | None, record: CallRecord | None) -> Literal["cancelled", "lost"]:
    if row is None:
        return "lost"
    if record is None:
        # Taken away with the session, or forgotten by its time.
        return "lost" if row.exists else "cancelled"
    return "lost" if record.ids[0] > row.cleared_through else "cancelled"
