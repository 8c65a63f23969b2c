"""A session's row under its lock, where PostgreSQL alone decides the order of events."""

from collections.abc import Sequence
from typing import Final, LiteralString

import asyncpg
import msgspec

from service.adapters.postgres.counters import grow_counters
from service.adapters.postgres.door import Connection
from service.adapters.postgres.keys import is_row_of, session_key
from service.adapters.postgres.vectors import Worded
from service.domain.errors import SessionNotFound
from service.domain.ids import ZERO_ID, MessageId, next_id
from service.domain.messages import role_of
from service.domain.sessions import SessionRef
from service.domain.statistics import Counted, Place, count_messages

LOCK: Final[LiteralString] = """
SELECT tenant, session_id, user_id, document, active_id, last_id, cleared_through, deleted,
       summary
FROM sessions
WHERE session_key = $1 AND tenant = $2
FOR UPDATE
"""

# A new row is a tombstone of nothing until its first event revives it. The update changes nothing:
# it locks and returns the row of whoever was faster.
MAKE: Final[LiteralString] = """
INSERT INTO sessions AS s (session_key, tenant, session_id, born_id, active_id, deleted)
VALUES ($1, $2, $3, $4, $4, true)
ON CONFLICT (session_key) DO UPDATE SET session_key = s.session_key
RETURNING tenant, session_id, user_id, document, active_id, last_id, cleared_through, deleted,
       summary
"""

SAY: Final[LiteralString] = """
WITH said AS (
    INSERT INTO messages (session_key, id, tenant, role, body, user_id, words)
    SELECT $1::uuid, m.id, $2::text, m.role, m.body, $8::text, m.words::tsvector
    FROM unnest($3::uuid[], $4::text[], $5::json[], $9::text[]) AS m (id, role, body, words)
)
UPDATE sessions
SET message_count = message_count + cardinality($3::uuid[]),
    born_id = CASE WHEN deleted THEN $6 ELSE born_id END,
    active_id = $7,
    last_id = $7,
    archived_through = $7,
    user_id = COALESCE(user_id, $8),
    session_id = $10,
    deleted = false
WHERE session_key = $1 AND tenant = $2
"""


# A session with messages gets its first owner.
CLAIM_MESSAGES: Final[LiteralString] = """
UPDATE messages SET user_id = $3
WHERE session_key = $1 AND tenant = $2 AND user_id IS NULL
"""


class SessionRow(msgspec.Struct, frozen=True, kw_only=True):
    """How a session stands; it stays so until the transaction that locked it ends."""

    ref: SessionRef
    exists: bool
    user_id: str | None
    document: bytes
    last_event_id: MessageId
    last_id: MessageId | None
    cleared_through: MessageId
    summary: bytes

    def next_ids(self, count: int, milliseconds: int) -> tuple[MessageId, ...]:
        """Ids above every event that the session ever had, also when the clock stepped back."""
        ids: list[MessageId] = []
        previous = self.last_event_id
        for _ in range(count):
            previous = next_id(previous, milliseconds)
            ids.append(previous)
        return tuple(ids)

    def check_owner(self, user_id: str | None) -> None:
        if user_id is not None and self.user_id not in {None, user_id}:
            raise SessionNotFound


async def lock_session(connection: Connection, ref: SessionRef) -> SessionRow | None:
    """Wait for the row and hold it; None where the session never was."""
    row = await connection.fetchrow(LOCK, session_key(ref), ref.tenant)
    return None if row is None else _session_row(ref, row)


async def lock_or_make_session(connection: Connection, ref: SessionRef) -> SessionRow:
    """As ``lock_session``; a row made here goes where the transaction is not committed."""
    found = await lock_session(connection, ref)
    if found is not None:
        return found
    row = await connection.fetchrow(MAKE, session_key(ref), ref.tenant, ref.session_id, ZERO_ID)
    if row is None:
        raise AssertionError("an upsert returns its row")
    return _session_row(ref, row)


def existing(row: SessionRow | None) -> SessionRow:
    """Raises SessionNotFound for an unknown and for a deleted session."""
    if row is None or not row.exists:
        raise SessionNotFound
    return row


async def say(
    connection: Connection,
    row: SessionRow,
    messages: Sequence[Worded],
    milliseconds: int,
    *,
    user_id: str | None = None,
) -> tuple[MessageId, ...]:
    """Store messages at the end of the session, whose owner was checked before."""
    ids, bodies = row.next_ids(len(messages), milliseconds), [one.body for one in messages]
    await claim_messages(connection, row, user_id)
    await connection.execute(
        SAY,
        session_key(row.ref),
        row.ref.tenant,
        ids,
        [role_of(body) for body in bodies],
        bodies,
        ids[0],
        ids[-1],
        row.user_id or user_id,
        [one.words for one in messages],
        row.ref.session_id,
    )
    counts: dict[Place, Counted] = {}
    owner, said = row.user_id or user_id, zip(ids, bodies, strict=True)
    count_messages(row.ref.tenant, owner, str(session_key(row.ref)), said, counts)
    await grow_counters(connection, counts)
    return ids


async def claim_messages(connection: Connection, row: SessionRow, user_id: str | None) -> None:
    """What was said before the session had an owner is the owner's too."""
    if row.user_id is None and user_id is not None and row.last_id is not None:
        await connection.execute(CLAIM_MESSAGES, session_key(row.ref), row.ref.tenant, user_id)


def _session_row(ref: SessionRef, row: asyncpg.Record) -> SessionRow:
    if not is_row_of(ref, row["tenant"], row["session_id"]):
        # Never silent: two sessions with one 128-bit hash would share their messages.
        raise AssertionError("two sessions have the same key")
    cleared_through = MessageId(str(row["cleared_through"]))
    return SessionRow(
        ref=ref,
        exists=not row["deleted"],
        user_id=row["user_id"],
        document=row["document"] or b"",
        last_event_id=max(MessageId(str(row["active_id"])), cleared_through),
        last_id=None if row["last_id"] is None else MessageId(str(row["last_id"])),
        cleared_through=cleared_through,
        summary=row["summary"] or b"",
    )
