"""Dropping what is kept no longer from PostgreSQL, in short transactions."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Final, LiteralString

from service.adapters.postgres.door import PostgresDoor
from service.adapters.postgres.keys import import_lock, session_key
from service.adapters.postgres.writer import LOCK_SESSIONS
from service.domain.ids import MessageId
from service.domain.sessions import SessionRef
from service.ports import Cut

# Over all tenants, by their names alone: one step of a loose index scan.
NEXT_TENANT: Final[LiteralString] = """
SELECT tenant FROM sessions
WHERE tenant > $1 AND NOT deleted
ORDER BY tenant
LIMIT 1
"""

# The tenant's oldest, so of each session the oldest of all it has.
OLD: Final[LiteralString] = """
SELECT DISTINCT ON (o.session_key) o.id AS through, (
    SELECT s.session_id FROM sessions s WHERE s.session_key = o.session_key AND s.tenant = $1
) AS session_id
FROM (
    SELECT session_key, id FROM messages
    WHERE tenant = $1 AND id < $2
    ORDER BY id
    LIMIT $3
) AS o
ORDER BY o.session_key, o.id DESC
"""

# Under the sessions' locks. cleared_through keeps a replayed batch and a late filling from bringing
# anything back. A summary of what is left, and of what came before it, stays.
CUT: Final[LiteralString] = """
WITH old AS (
    SELECT * FROM unnest($1::uuid[], $2::uuid[]) AS o (session_key, through)
), gone AS (
    DELETE FROM messages m USING old o
    WHERE m.session_key = o.session_key AND m.tenant = $3 AND m.id <= o.through
    RETURNING m.session_key
), counted AS (
    SELECT session_key, count(*) AS rows FROM gone GROUP BY session_key
), cut AS (
    UPDATE sessions s
    SET cleared_through = GREATEST(s.cleared_through, o.through),
        message_count = s.message_count - COALESCE(c.rows, 0),
        last_id = CASE WHEN s.last_id > o.through THEN s.last_id END,
        archived_through = CASE WHEN s.archived_through > o.through THEN s.archived_through END,
        summary = CASE WHEN s.summary_through > o.through THEN s.summary END,
        summary_through = CASE WHEN s.summary_through > o.through THEN s.summary_through
                               ELSE '00000000-0000-0000-0000-000000000000'::uuid END
    FROM old o LEFT JOIN counted c USING (session_key)
    WHERE s.session_key = o.session_key AND s.tenant = $3
)
SELECT count(*) FROM gone
"""

IDLE: Final[LiteralString] = """
SELECT session_id, active_id FROM sessions
WHERE tenant = $1 AND active_id < $2 AND active_id > $3 AND NOT deleted AND message_count = 0
ORDER BY active_id
LIMIT $4
"""

# Taken with the transaction; who imports into a session has its lock until the import is committed.
TRY_LOCKS: Final[LiteralString] = """
SELECT l.session_key
FROM unnest($1::uuid[], $2::bigint[]) AS l (session_key, lock)
WHERE pg_try_advisory_xact_lock(l.lock)
"""

# In the order in which a flusher locks them. What is said from here on stays in the journal, and so
# in the hot memory, until this transaction ends.
STILL_IDLE: Final[LiteralString] = """
SELECT session_id FROM sessions
WHERE session_key = ANY($1::uuid[]) AND tenant = $2 AND active_id < $3 AND NOT deleted
  AND message_count = 0
ORDER BY session_key
FOR UPDATE
"""

# Under the sessions' locks; what was said since is seen.
END: Final[LiteralString] = """
WITH ended AS (
    UPDATE sessions
    SET cleared_through = GREATEST(cleared_through, active_id), session_id = '', user_id = NULL,
        document = NULL, document_id = '00000000-0000-0000-0000-000000000000', summary = NULL,
        summary_through = '00000000-0000-0000-0000-000000000000', deleted = true
    WHERE session_key = ANY($1::uuid[]) AND tenant = $2 AND active_id < $3 AND NOT deleted
      AND message_count = 0
    RETURNING session_key
), gone AS (
    DELETE FROM calls c USING ended e WHERE c.session_key = e.session_key AND c.tenant = $2
)
SELECT count(*) FROM ended
"""


class PostgresRetention:
    """ArchiveRetention in PostgreSQL."""

    def __init__(self, door: PostgresDoor) -> None:
        self._door = door

    async def next_tenant(self, after: str) -> str | None:
        async with self._door.connection() as connection:
            return await connection.fetchval(NEXT_TENANT, after)

    async def old(self, tenant: str, *, before: MessageId, limit: int) -> list[Cut]:
        async with self._door.connection() as connection:
            rows = await connection.fetch(OLD, tenant, before, limit)
        return [
            Cut(ref=SessionRef(tenant, row["session_id"]), through=MessageId(str(row["through"])))
            for row in rows
        ]

    async def cut(self, tenant: str, cuts: Sequence[Cut]) -> int:
        keys = [session_key(cut.ref) for cut in cuts]
        throughs = [cut.through for cut in cuts]
        async with self._door.transaction() as connection:
            await connection.fetch(LOCK_SESSIONS, keys)
            return await connection.fetchval(CUT, keys, throughs, tenant)

    async def idle(
        self, tenant: str, *, before: MessageId, after: MessageId, limit: int
    ) -> list[tuple[SessionRef, MessageId]]:
        async with self._door.connection() as connection:
            rows = await connection.fetch(IDLE, tenant, before, after, limit)
        return [
            (SessionRef(tenant, row["session_id"]), MessageId(str(row["active_id"])))
            for row in rows
        ]

    @asynccontextmanager
    async def still_idle(
        self, tenant: str, refs: Sequence[SessionRef], *, before: MessageId
    ) -> AsyncGenerator[Sequence[SessionRef]]:
        keys = [session_key(ref) for ref in refs]
        async with self._door.transaction() as connection:
            locked = await connection.fetch(TRY_LOCKS, keys, [import_lock(k.hex) for k in keys])
            free = [row["session_key"] for row in locked]
            rows = await connection.fetch(STILL_IDLE, free, tenant, before)
            yield [SessionRef(tenant, row["session_id"]) for row in rows]

    async def end(self, tenant: str, refs: Sequence[SessionRef], *, before: MessageId) -> int:
        keys = [session_key(ref) for ref in refs]
        async with self._door.transaction() as connection:
            await connection.fetch(LOCK_SESSIONS, keys)
            return await connection.fetchval(END, keys, tenant, before)
