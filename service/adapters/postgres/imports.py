"""Imports: one transaction per session, which holds no lock that others wait for until its end."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Final, LiteralString

import msgspec

from service.adapters.postgres.archive import find_session_or_tombstone
from service.adapters.postgres.calls import FIND, keep_record, keyed_call
from service.adapters.postgres.counters import grow_counters
from service.adapters.postgres.door import Connection, PostgresDoor
from service.adapters.postgres.keys import import_lock, session_key
from service.adapters.postgres.session_rows import CLAIM_MESSAGES, SessionRow, lock_or_make_session
from service.adapters.postgres.vectors import vectors_of
from service.domain.errors import (
    Overloaded,
    PreconditionFailed,
    RequestRunning,
    SessionBusy,
    SessionNotFound,
)
from service.domain.ids import ZERO_ID, MessageId
from service.domain.sessions import SessionRef
from service.domain.statistics import Counted, Place, count_messages
from service.ports import Clock, Import, Imported, ImportedRow, ImportRun, Once

IMPORTS_MAX: Final = 2
"""Imports at once, per process: the connections of their door."""
STATEMENT_SECONDS: Final = 30.0
"""Of their door: the transaction as a whole lasts as long as the client sends."""
LOCK_WAIT: Final = "5s"
"""For the session's row at the end: a flusher holds it for one batch."""
RETRY_AFTER_SECONDS: Final = 5
NOT_EMPTY: Final = "The session has messages: only an empty one is imported into."

# Taken by the import alone and gone with its transaction. The session's row is not locked while
# the client sends: a flusher that met such a lock would keep all sessions of its batch waiting.
TRY_LOCK: Final[LiteralString] = "SELECT pg_try_advisory_xact_lock($1)"

BOUND_WAITS: Final[LiteralString] = "SELECT set_config('lock_timeout', $1, true)"

# Ids are new: a conflict would be an error that somebody sees.
INSERT_IMPORTED: Final[LiteralString] = """
INSERT INTO messages (session_key, id, tenant, role, body, user_id, words)
SELECT $1::uuid, m.id, $2::text, m.role, m.body, $6::text, m.words::tsvector
FROM unnest($3::uuid[], $4::text[], $5::json[], $7::text[]) AS m (id, role, body, words)
"""

# Under the row's lock. What was said beside the import is above it.
COUNT_THROUGH: Final[LiteralString] = """
SELECT count(*) FROM messages WHERE session_key = $1 AND tenant = $2 AND id > $3 AND id <= $4
"""

TOUCH_IMPORTED: Final[LiteralString] = """
UPDATE sessions
SET message_count = message_count + $3,
    born_id = CASE WHEN deleted THEN $4 ELSE born_id END,
    active_id = GREATEST(active_id, $5),
    last_id = GREATEST(last_id, $5),
    archived_through = GREATEST(archived_through, $5),
    user_id = COALESCE(user_id, $6),
    session_id = $7,
    deleted = false
WHERE session_key = $1 AND tenant = $2
"""


class PostgresImports:
    """Imports into PostgreSQL, through a door of its own."""

    def __init__(self, door: PostgresDoor, clock: Clock, *, once_seconds: int) -> None:
        self._door = door
        self._clock = clock
        self._once_seconds = once_seconds
        self._running = 0

    @asynccontextmanager
    async def open(self, command: Import) -> AsyncGenerator[ImportRun]:
        now = self._clock.milliseconds()
        async with self.begun(command, now=now, latest=now, above=ZERO_ID) as run:
            yield run

    @asynccontextmanager
    async def begun(
        self,
        command: Import,
        *,
        now: int,
        latest: int,
        above: MessageId,
        born_id: MessageId | None = None,
        held: PreconditionFailed | None = None,
    ) -> AsyncGenerator[ImportRun]:
        """As ``open``, for a caller who knows more of the session than its row says.

        ``held`` refuses it for messages that are not in the archive, unless the call was made
        before.
        """
        if self._running == IMPORTS_MAX:
            raise Overloaded(
                f"{IMPORTS_MAX} imports are running here.", retry_after_seconds=RETRY_AFTER_SECONDS
            )
        self._running += 1
        try:
            async with self._door.transaction() as connection:
                done = await self._begin(connection, command)
                if done is None and held is not None:
                    raise held
                through = above if done else await _emptied_through(connection, command)
                yield _Run(
                    connection,
                    command,
                    now=now,
                    latest=latest,
                    above=max(above, through),
                    born_id=born_id,
                    done=done,
                    once_seconds=self._once_seconds,
                )
        finally:
            self._running -= 1

    async def _begin(self, connection: Connection, command: Import) -> Imported | None:
        """Keep other imports away, and find what an earlier call with the key did."""
        key = session_key(command.ref).hex
        if command.key is not None and not await _locked(connection, f"{key}:{command.key}"):
            raise RequestRunning
        if not await _locked(connection, key):
            raise SessionBusy(
                retry_after_seconds=RETRY_AFTER_SECONDS,
                detail="Another import into this session is running.",
            )
        await connection.execute(BOUND_WAITS, LOCK_WAIT)
        if command.key is None:
            return None
        row = await connection.fetchrow(
            FIND, session_key(command.ref), command.ref.tenant, "import", command.key
        )
        if row is None or row["state"] != "done":
            # Of a session that was deleted since, a record is left without its result.
            return None
        done = msgspec.json.decode(row["result"], type=Imported)
        return msgspec.structs.replace(done, replayed=True, fingerprint=row["fingerprint"])


class _Run:
    """ImportRun in an open transaction."""

    def __init__(
        self,
        connection: Connection,
        command: Import,
        *,
        now: int,
        latest: int,
        above: MessageId,
        born_id: MessageId | None,
        done: Imported | None,
        once_seconds: int,
    ) -> None:
        self._connection = connection
        self._command = command
        self._key = session_key(command.ref)
        self._born_id = born_id
        self._once_seconds = once_seconds
        self.now_milliseconds = now
        self.latest_milliseconds = latest
        self.above = above
        self.done = done
        self._counts: dict[Place, Counted] = {}

    async def store(self, rows: Sequence[ImportedRow]) -> None:
        await self._connection.execute(
            INSERT_IMPORTED,
            self._key,
            self._command.ref.tenant,
            [row.id for row in rows],
            [row.role for row in rows],
            [row.body for row in rows],
            self._command.user_id,
            await vectors_of(row.body for row in rows),
        )
        said = ((row.id, row.body) for row in rows)
        tenant, user_id = self._command.ref.tenant, self._command.user_id
        count_messages(tenant, user_id, str(self._key), said, self._counts)

    async def finish(self, imported: Imported, fingerprint: str) -> None:
        ref, user_id = self._command.ref, self._command.user_id
        row = await lock_or_make_session(self._connection, ref)
        row.check_owner(user_id if row.exists else None)
        below = await self._connection.fetchval(
            COUNT_THROUGH,
            self._key,
            ref.tenant,
            row.cleared_through,
            imported.last_id,
        )
        if below != imported.imported:
            raise PreconditionFailed(row.last_id, NOT_EMPTY)
        await self._connection.execute(
            TOUCH_IMPORTED,
            self._key,
            ref.tenant,
            imported.imported,
            self._born_id or imported.first_id,
            imported.last_id,
            user_id,
            ref.session_id,
        )
        await self._own(row)
        await self._keep(ref, imported, fingerprint)

    async def _own(self, row: SessionRow) -> None:
        """What named nobody, the import or what was said beside it, is the owner's."""
        owner = row.user_id or self._command.user_id or ""
        ownerless = row.user_id != self._command.user_id
        if owner and ownerless:
            await self._connection.execute(CLAIM_MESSAGES, self._key, row.ref.tenant, owner)
        counts = {
            msgspec.structs.replace(place, user_id=owner): counted
            for place, counted in self._counts.items()
        }
        await grow_counters(self._connection, counts)

    async def _keep(self, ref: SessionRef, imported: Imported, fingerprint: str) -> None:
        if self._command.key is None:
            return
        once = Once(operation="import", key=self._command.key, fingerprint=fingerprint)
        call = keyed_call(ref, once, self._once_seconds)
        ids = (imported.first_id, imported.last_id)
        await keep_record(self._connection, call, ids, result=msgspec.json.encode(imported))


async def _locked(connection: Connection, name: str) -> bool:
    return bool(await connection.fetchval(TRY_LOCK, import_lock(name)))


async def _emptied_through(connection: Connection, command: Import) -> MessageId:
    """What the session was cleared through. Raises SessionNotFound, PreconditionFailed."""
    session = await find_session_or_tombstone(connection, command.ref)
    if session is None:
        return ZERO_ID
    owner = None if session.deleted else session.user_id
    if command.user_id is not None and owner not in {None, command.user_id}:
        raise SessionNotFound
    if session.message_count > 0:
        raise PreconditionFailed(session.last_id, NOT_EMPTY)
    return session.cleared_through
