"""Sessions where PostgreSQL holds everything."""

from typing import Final, LiteralString

import msgspec

from service.adapters.postgres.archive import find_session, find_sessions
from service.adapters.postgres.calls import (
    Call,
    find_record,
    keep_record,
    keyed_call,
    own_call,
)
from service.adapters.postgres.door import Connection, PostgresDoor
from service.adapters.postgres.keys import session_key
from service.adapters.postgres.session_rows import (
    existing,
    lock_or_make_session,
    lock_session,
)
from service.domain.errors import SessionExists, SessionNotFound
from service.domain.ids import ZERO_ID, MessageId, id_time
from service.domain.sessions import (
    Session,
    SessionDocument,
    SessionRef,
    decode_document,
    encode_document,
)
from service.domain.summaries import Summary, encode_summary
from service.ports import ArchivedSession, Clock, Create, Created, SessionQuery, SessionsPage

# Of a new row or of a tombstone, which has no messages.
CREATE: Final[LiteralString] = """
UPDATE sessions
SET user_id = $3, document = $4, document_id = $5, born_id = $5, active_id = $5, session_id = $6,
    deleted = false
WHERE session_key = $1 AND tenant = $2
"""

REPLACE: Final[LiteralString] = """
UPDATE sessions
SET document = $3, document_id = $4, active_id = $4
WHERE session_key = $1 AND tenant = $2
"""

# The tombstone keeps the order: what comes after it has higher ids. It names nobody, and records of
# calls hold no answers any more: a turn that is repeated runs again, and none is found by its id.
DELETE: Final[LiteralString] = """
WITH gone AS (
    DELETE FROM messages WHERE session_key = $1 AND tenant = $2 AND id <= $3
), freed AS (
    DELETE FROM turn_leases WHERE session_key = $1 AND tenant = $2
), emptied AS (
    UPDATE calls
    SET state = CASE WHEN result <> '' THEN 'failed' ELSE state END, result = '', turn_id = NULL,
        asked = ''
    WHERE session_key = $1 AND tenant = $2
      AND (result <> '' OR turn_id IS NOT NULL OR asked <> '')
)
UPDATE sessions
SET cleared_through = $3, active_id = $3, last_id = NULL, message_count = 0,
    session_id = '', user_id = NULL, archived_through = NULL, document = NULL, deleted = true,
    summary = NULL,
    summary_through = '00000000-0000-0000-0000-000000000000'
WHERE session_key = $1 AND tenant = $2
"""

# Compare and set; what was cleared away since is not summarised.
SUMMARISE: Final[LiteralString] = """
UPDATE sessions
SET summary = $3, summary_through = $4
WHERE session_key = $1 AND tenant = $2 AND summary_through = $5 AND summary_through < $4
  AND cleared_through < $4
RETURNING true
"""


class PostgresSessions:
    """Sessions in PostgreSQL alone."""

    def __init__(self, door: PostgresDoor, clock: Clock, *, once_seconds: int) -> None:
        self._door = door
        self._clock = clock
        self._once_seconds = once_seconds

    async def create(self, command: Create) -> Created:
        once = command.once
        call = (
            own_call(command.ref)
            if once is None
            else keyed_call(command.ref, once, self._once_seconds)
        )
        return await self._door.settled(lambda it: self._create(it, call, command))

    async def get(self, ref: SessionRef, *, wait_seconds: float = 0) -> Session:
        del wait_seconds  # What was accepted is archived.
        async with self._door.connection() as connection:
            found = await find_session(connection, ref)
        if found is None:
            raise SessionNotFound
        return _session(ref.session_id, found)

    async def newest(self, query: SessionQuery) -> SessionsPage:
        # One more than asked for tells whether there are more.
        wider = msgspec.structs.replace(query, limit=query.limit + 1)
        async with self._door.connection() as connection:
            found = await find_sessions(connection, wider)
        items = tuple(_session(session_id, row) for session_id, row in found[: query.limit])
        more = len(found) > query.limit
        return SessionsPage(items=items, next_before=items[-1].active_id if more else None)

    async def replace(self, ref: SessionRef, old: SessionDocument, new: SessionDocument) -> bool:
        call = own_call(ref)
        return await self._door.settled(lambda it: self._replace(it, call, old, new))

    async def summarise(self, ref: SessionRef, old: MessageId | None, summary: Summary) -> bool:
        return await self._door.settled(lambda it: self._summarise(it, ref, old, summary))

    async def delete(self, ref: SessionRef) -> None:
        call = own_call(ref)
        await self._door.settled(lambda it: self._delete(it, call))

    async def _create(self, connection: Connection, call: Call, command: Create) -> Created:
        row = await lock_or_make_session(connection, call.ref)
        record = await find_record(connection, call)
        if record is not None:
            replayed = command.once is not None
            return Created(born_id=record.ids[0], ttl=None, replayed=replayed)
        if row.exists:
            raise SessionExists("A session with this id exists.")

        ids = row.next_ids(1, self._clock.milliseconds())
        document = _kept(command.document)
        await connection.execute(
            CREATE,
            *(session_key(call.ref), call.ref.tenant, command.user_id, document),
            *(*ids, call.ref.session_id),
        )
        await keep_record(connection, call, ids)
        return Created(born_id=ids[0], ttl=None)

    async def _replace(
        self, connection: Connection, call: Call, old: SessionDocument, new: SessionDocument
    ) -> bool:
        locked = await lock_session(connection, call.ref)
        if await find_record(connection, call) is not None:
            return True
        row = existing(locked)
        if decode_document(row.document) != old:
            return False

        ids = row.next_ids(1, self._clock.milliseconds())
        await connection.execute(REPLACE, session_key(call.ref), call.ref.tenant, _kept(new), *ids)
        await keep_record(connection, call, ids)
        return True

    async def _summarise(
        self, connection: Connection, ref: SessionRef, old: MessageId | None, summary: Summary
    ) -> bool:
        row = existing(await lock_session(connection, ref))
        encoded = encode_summary(summary)
        if row.summary == encoded:
            return True
        place = (session_key(ref), ref.tenant)
        through = (summary.through_id, old or ZERO_ID)
        return bool(await connection.fetchval(SUMMARISE, *place, encoded, *through))

    async def _delete(self, connection: Connection, call: Call) -> None:
        row = await lock_session(connection, call.ref)
        if await find_record(connection, call) is not None:
            return
        ids = existing(row).next_ids(1, self._clock.milliseconds())
        await connection.execute(DELETE, session_key(call.ref), call.ref.tenant, *ids)
        await keep_record(connection, call, ids)


def _kept(document: SessionDocument) -> bytes | None:
    return None if document == SessionDocument() else encode_document(document)


def _session(session_id: str, row: ArchivedSession) -> Session:
    return Session(
        id=session_id,
        user_id=row.user_id,
        document=decode_document(row.document),
        created_at=id_time(row.born_id),
        active_id=row.active_id,
        message_count=row.message_count,
        last_id=row.last_id,
        # What is accepted here is committed.
        archived_through=row.last_id,
        ttl=None,
    )
