"""Reading what PostgreSQL holds of a session."""

from typing import Final, LiteralString
from uuid import UUID

import asyncpg

from service.adapters.postgres.door import Connection, PostgresDoor
from service.adapters.postgres.keys import import_lock, session_key
from service.domain.ids import HIGHEST_ID, ZERO_ID, MessageId
from service.domain.messages import with_id
from service.domain.sessions import SessionRef
from service.ports import ArchivedSession, PageQuery, SessionQuery

SESSION: Final[LiteralString] = """
SELECT session_id, user_id, document, born_id, active_id, message_count,
       last_id, archived_through, cleared_through, deleted, summary
FROM sessions
WHERE session_key = $1 AND tenant = $2
"""

PAGE_ASCENDING: Final[LiteralString] = """
SELECT id, body
FROM messages
WHERE session_key = $1 AND tenant = $2 AND id > $3 AND id < $4
  AND ($6::text IS NULL OR role = $6)
ORDER BY id
LIMIT $5
"""

PAGE_DESCENDING: Final[LiteralString] = """
SELECT id, body
FROM messages
WHERE session_key = $1 AND tenant = $2 AND id > $3 AND id < $4
  AND ($6::text IS NULL OR role = $6)
ORDER BY id DESC
LIMIT $5
"""

PINNED: Final[LiteralString] = """
SELECT id, body
FROM messages
WHERE session_key = $1 AND tenant = $2 AND id > $3 AND id < $4
  AND role IN ('system', 'developer')
ORDER BY id DESC
LIMIT $5
"""

PINNED_MAX: Final = 1000
"""System and developer messages shown of one session at most: the newest are kept."""

# An advisory lock of one 64-bit number is listed by its halves. Looked at and not tried: to hold it
# for a moment would refuse an import that begins.
IMPORTING: Final[LiteralString] = """
SELECT EXISTS (
    SELECT 1 FROM pg_locks
    WHERE locktype = 'advisory' AND granted AND objsubid = 1
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND classid::bigint = ($1::bigint >> 32) & 4294967295
      AND objid::bigint = $1::bigint & 4294967295
)
"""

LIST: Final[LiteralString] = """
SELECT session_id, user_id, document, born_id, active_id, message_count,
       last_id, archived_through, cleared_through, deleted, NULL::json AS summary
FROM sessions
WHERE tenant = $1 AND active_id < $2 AND NOT deleted
ORDER BY active_id DESC
LIMIT $3
"""

LIST_OF_USER: Final[LiteralString] = """
SELECT session_id, user_id, document, born_id, active_id, message_count,
       last_id, archived_through, cleared_through, deleted, NULL::json AS summary
FROM sessions
WHERE tenant = $1 AND active_id < $2 AND user_id = $4 AND NOT deleted
ORDER BY active_id DESC
LIMIT $3
"""

# By a key that no activity moves: who walks through them misses none that is there all along.
OF_USER: Final[LiteralString] = """
SELECT session_key, session_id
FROM sessions
WHERE tenant = $1 AND user_id = $2 AND NOT deleted AND session_key > $3
ORDER BY session_key
LIMIT $4
"""


class PostgresArchive:
    """Archive in PostgreSQL."""

    def __init__(self, door: PostgresDoor) -> None:
        self._door = door

    async def session(self, ref: SessionRef) -> ArchivedSession | None:
        async with self._door.connection() as connection:
            return await find_session_or_tombstone(connection, ref)

    async def page(self, ref: SessionRef, query: PageQuery, *, above: MessageId) -> list[bytes]:
        async with self._door.connection() as connection:
            return await find_page(connection, ref, query, above=above)

    async def is_importing(self, ref: SessionRef) -> bool:
        async with self._door.connection() as connection:
            return await connection.fetchval(IMPORTING, import_lock(session_key(ref).hex))

    async def pinned(self, ref: SessionRef, *, above: MessageId, below: MessageId) -> list[bytes]:
        async with self._door.connection() as connection:
            return await find_pinned(connection, ref, above=above, below=below)

    async def newest_sessions(self, query: SessionQuery) -> list[tuple[str, ArchivedSession]]:
        async with self._door.connection() as connection:
            return await find_sessions(connection, query)

    async def sessions_of(
        self, tenant: str, user_id: str, *, after: str | None, limit: int
    ) -> list[tuple[str, str]]:
        async with self._door.connection() as connection:
            rows = await connection.fetch(OF_USER, tenant, user_id, after or ZERO_ID, limit)
        return [(str(row["session_key"]), row["session_id"]) for row in rows]


async def find_session(connection: Connection, ref: SessionRef) -> ArchivedSession | None:
    found = await find_session_or_tombstone(connection, ref)
    return None if found is None or found.deleted else found


async def find_session_or_tombstone(
    connection: Connection, ref: SessionRef
) -> ArchivedSession | None:
    row = await connection.fetchrow(SESSION, session_key(ref), ref.tenant)
    return None if row is None else _session(row)


async def find_page(
    connection: Connection, ref: SessionRef, query: PageQuery, *, above: MessageId
) -> list[bytes]:
    rows = await connection.fetch(
        PAGE_DESCENDING if query.descending else PAGE_ASCENDING,
        session_key(ref),
        ref.tenant,
        max(above, query.after or ZERO_ID),
        query.before or HIGHEST_ID,
        query.limit,
        query.role,
    )
    return [_text(row) for row in rows]


async def find_pinned(
    connection: Connection, ref: SessionRef, *, above: MessageId, below: MessageId
) -> list[bytes]:
    rows = await connection.fetch(PINNED, session_key(ref), ref.tenant, above, below, PINNED_MAX)
    return [_text(row) for row in reversed(rows)]


async def find_sessions(
    connection: Connection, query: SessionQuery
) -> list[tuple[str, ArchivedSession]]:
    below = query.before or HIGHEST_ID
    if query.user_id is None:
        rows = await connection.fetch(LIST, query.tenant, below, query.limit)
    else:
        rows = await connection.fetch(LIST_OF_USER, query.tenant, below, query.limit, query.user_id)
    return [(row["session_id"], _session(row)) for row in rows]


def _text(row: asyncpg.Record) -> bytes:
    return with_id(str(row["id"]), row["body"])


def _session(row: asyncpg.Record) -> ArchivedSession:
    return ArchivedSession(
        user_id=row["user_id"],
        document=row["document"] or b"",
        born_id=MessageId(str(row["born_id"])),
        active_id=MessageId(str(row["active_id"])),
        message_count=row["message_count"],
        last_id=_optional(row["last_id"]),
        archived_through=_optional(row["archived_through"]),
        cleared_through=MessageId(str(row["cleared_through"])),
        deleted=row["deleted"],
        summary=row["summary"] or b"",
    )


def _optional(value: UUID | None) -> MessageId | None:
    return None if value is None else MessageId(str(value))
