"""Forgetting a user in PostgreSQL."""

from collections.abc import AsyncGenerator
from typing import Final, LiteralString

import msgspec

from service.adapters.postgres.archive import PostgresArchive, find_session
from service.adapters.postgres.door import Connection, PostgresDoor
from service.adapters.postgres.keys import session_key
from service.adapters.postgres.session_rows import lock_session
from service.adapters.postgres.writer import FORGET, LOCK_SESSIONS
from service.domain.errors import Overloaded
from service.domain.ids import MessageId
from service.domain.sessions import SessionRef
from service.ports import ArchiveErased, Clock, Erased

ROUNDS_MAX: Final = 5
"""Looks for the sessions of a user who goes on talking."""
PAGE: Final = 200
"""Sessions that one look takes in."""

DELETE_RECORDS: Final[LiteralString] = """
WITH gone AS (
    DELETE FROM calls WHERE session_key = $1 AND tenant = $2 RETURNING 1
)
SELECT count(*) FROM gone
"""

DELETE_LEASE: Final[LiteralString] = """
DELETE FROM turn_leases WHERE session_key = $1 AND tenant = $2
"""

STANDING: Final[LiteralString] = """
SELECT s.message_count, (
    SELECT count(*) FROM calls c WHERE c.session_key = s.session_key AND c.tenant = $2
) AS records
FROM sessions s
WHERE s.session_key = $1 AND s.tenant = $2 AND NOT s.deleted
"""

# A step of a loose index scan for each of the tenant's days.
COUNTED_DAYS: Final[LiteralString] = """
WITH RECURSIVE days AS (
    SELECT min(day) AS day FROM daily_counts WHERE tenant = $1
    UNION ALL
    SELECT (SELECT min(c.day) FROM daily_counts c WHERE c.tenant = $1 AND c.day > d.day)
    FROM days d
    WHERE d.day IS NOT NULL
)
SELECT day FROM daily_counts
WHERE tenant = $1 AND day = ANY(ARRAY(SELECT day FROM days)) AND user_id = $2
UNION
SELECT day FROM active_sessions
WHERE tenant = $1 AND day = ANY(ARRAY(SELECT day FROM days)) AND user_id = $2
ORDER BY day
"""

# A flusher takes a day's rows in the order of their users, nobody's first. Taking nobody's first
# here as well, and one day in a transaction, neither waits for the other in a circle.
TAKE_NOBODYS: Final[LiteralString] = """
INSERT INTO daily_counts AS n
    (tenant, day, user_id, model, slot, messages, turns, input_tokens, output_tokens)
SELECT tenant, day, '', model, slot, 0, 0, 0, 0
FROM daily_counts
WHERE tenant = $1 AND day = $2 AND user_id = $3
ORDER BY model COLLATE "C", slot
ON CONFLICT (tenant, day, user_id, model, slot) DO UPDATE SET messages = n.messages
"""

# What was used stays counted, as nobody's use.
FOLD_COUNTS: Final[LiteralString] = """
WITH gone AS (
    DELETE FROM daily_counts
    WHERE tenant = $1 AND day = $2 AND user_id = $3
    RETURNING model, slot, messages, turns, input_tokens, output_tokens
)
INSERT INTO daily_counts AS n
    (tenant, day, user_id, model, slot, messages, turns, input_tokens, output_tokens)
SELECT $1, $2, '', model, slot, messages, turns, input_tokens, output_tokens
FROM gone
ORDER BY model COLLATE "C", slot
ON CONFLICT (tenant, day, user_id, model, slot) DO UPDATE
SET messages = n.messages + EXCLUDED.messages,
    turns = n.turns + EXCLUDED.turns,
    input_tokens = n.input_tokens + EXCLUDED.input_tokens,
    output_tokens = n.output_tokens + EXCLUDED.output_tokens
"""

FOLD_ACTIVE: Final[LiteralString] = """
WITH gone AS (
    DELETE FROM active_sessions
    WHERE tenant = $1 AND day = $2 AND user_id = $3
    RETURNING model, session_key
)
INSERT INTO active_sessions (tenant, day, user_id, model, session_key)
SELECT $1, $2, '', model, session_key
FROM gone
ORDER BY model COLLATE "C", session_key
ON CONFLICT (tenant, day, user_id, model, session_key) DO NOTHING
"""


class PostgresArchiveErasure:
    """ArchiveErasure in PostgreSQL."""

    def __init__(self, door: PostgresDoor) -> None:
        self._door = door

    async def erase(self, ref: SessionRef, through: MessageId) -> ArchiveErased:
        async with self._door.transaction() as connection:
            # Taken before the messages are looked for: what a flusher committed is seen then.
            if not await connection.fetch(LOCK_SESSIONS, [session_key(ref)]):
                # Nothing of it is here. What comes now, the journal's deletion takes: without the
                # lock it would be waited for in a circle.
                return ArchiveErased()
            stands = await find_session(connection, ref) is not None
            erased = await _erase(connection, ref, through)
        return msgspec.structs.replace(erased, sessions=int(stands))

    async def standing(self, ref: SessionRef) -> ArchiveErased:
        async with self._door.connection() as connection:
            row = await connection.fetchrow(STANDING, session_key(ref), ref.tenant)
        if row is None:
            return ArchiveErased()
        return ArchiveErased(sessions=1, messages=row["message_count"], records=row["records"])

    async def forget_user(self, tenant: str, user_id: str) -> bool:
        return await _fold(self._door, tenant, user_id)


class PostgresErasure:
    """Erasure where PostgreSQL holds everything: one transaction per session.

    A session whose commit was in doubt and stands is not counted again.
    """

    def __init__(self, door: PostgresDoor, clock: Clock) -> None:
        self._door = door
        self._clock = clock

    async def erase(self, tenant: str, user_id: str) -> Erased | None:
        total = ArchiveErased()
        for _ in range(ROUNDS_MAX):
            before = total.sessions
            async for ref in PostgresUserSessions(self._door).walk(tenant, user_id):
                total = _sum(total, await self._erase(ref, user_id))
            if total.sessions == before:
                break
        else:
            raise Overloaded("The user goes on talking: a repeated request goes on.")
        counted = await _fold(self._door, tenant, user_id)
        if not total.sessions and not counted:
            return None
        return Erased(
            archive_sessions=total.sessions,
            archive_messages=total.messages,
            idempotency_records=total.records,
        )

    async def _erase(self, ref: SessionRef, user_id: str) -> ArchiveErased:
        async def work(connection: Connection) -> ArchiveErased:
            row = await lock_session(connection, ref)
            if row is None or not row.exists or row.user_id != user_id:
                return ArchiveErased()
            [through] = row.next_ids(1, self._clock.milliseconds())
            return await _erase(connection, ref, through)

        return await self._door.settled(work)


class PostgresUserSessions:
    """UserSessions in PostgreSQL alone."""

    def __init__(self, door: PostgresDoor) -> None:
        self._archive = PostgresArchive(door)

    async def walk(self, tenant: str, user_id: str) -> AsyncGenerator[SessionRef]:
        after: str | None = None
        while True:
            rows = await self._archive.sessions_of(tenant, user_id, after=after, limit=PAGE)
            for _, session_id in rows:
                yield SessionRef(tenant, session_id)
            if len(rows) < PAGE:
                return
            after = rows[-1][0]


async def _erase(connection: Connection, ref: SessionRef, through: MessageId) -> ArchiveErased:
    """Of a session that stands, under its lock."""
    key = session_key(ref)
    records = await connection.fetchval(DELETE_RECORDS, key, ref.tenant)
    messages = await connection.fetchval(FORGET, [key], [through], [True])
    await connection.execute(DELETE_LEASE, key, ref.tenant)
    return ArchiveErased(sessions=1, messages=messages or 0, records=records)


async def _fold(door: PostgresDoor, tenant: str, user_id: str) -> bool:
    """Day by day; whether anything was counted of the user. A repeated call does the rest."""
    async with door.connection() as connection:
        rows = await connection.fetch(COUNTED_DAYS, tenant, user_id)
    for row in rows:

        async def fold(connection: Connection, day: object = row["day"]) -> None:
            for statement in (TAKE_NOBODYS, FOLD_COUNTS, FOLD_ACTIVE):
                await connection.execute(statement, tenant, day, user_id)

        await door.settled(fold)
    return bool(rows)


def _sum(one: ArchiveErased, other: ArchiveErased) -> ArchiveErased:
    return ArchiveErased(
        sessions=one.sessions + other.sessions,
        messages=one.messages + other.messages,
        records=one.records + other.records,
    )
