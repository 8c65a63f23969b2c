"""Writing batches of the journal: one transaction, idempotent, never overtaken by a replay."""

from typing import Final, LiteralString

import msgspec

from service.adapters.postgres.batch_counts import Locked, counts_of, newly_forgotten
from service.adapters.postgres.changes import SessionChange, changes_of
from service.adapters.postgres.counters import grow_counters
from service.adapters.postgres.door import Connection, PostgresDoor
from service.adapters.postgres.keys import is_row_of
from service.adapters.postgres.vectors import vectors_of
from service.domain.errors import ArchiveRefused
from service.domain.ids import MessageId
from service.domain.journal import Batch, Written
from service.domain.observations import OwnerConflict
from service.domain.summaries import decode_covered
from service.ports import Observer

UNDECODABLE: Final = "undecodable"

# Rows are made and locked in the order of their keys, so that two flushers never deadlock.
MAKE_SESSIONS: Final[LiteralString] = """
INSERT INTO sessions (session_key, tenant, session_id, born_id, active_id)
SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::uuid[], $4::uuid[])
ON CONFLICT (session_key) DO NOTHING
"""

# Taken before any message: the statements after it see what an earlier batch, also another
# flusher's, committed of these sessions.
LOCK_SESSIONS: Final[LiteralString] = """
SELECT session_key, tenant, session_id, user_id, message_count, cleared_through
FROM sessions
WHERE session_key = ANY($1::uuid[])
ORDER BY session_key
FOR UPDATE
"""

# A clear or a deletion that was applied before is not above cleared_through and changes nothing.
# A tombstone does not say whose it was: session_id, which is often the user's, is blank in it.
FORGET: Final[LiteralString] = """
WITH forgotten AS (
    SELECT f.session_key, f.through, f.deletes
    FROM unnest($1::uuid[], $2::uuid[], $3::boolean[]) AS f (session_key, through, deletes)
    JOIN sessions s USING (session_key)
    WHERE f.through > s.cleared_through
), gone AS (
    DELETE FROM messages m USING forgotten f
    WHERE m.session_key = f.session_key AND m.id <= f.through
    RETURNING m.session_key
), records AS (
    -- Of imports: what they answered is gone with the session.
    DELETE FROM calls c USING forgotten f WHERE f.deletes AND c.session_key = f.session_key
), counted AS (
    SELECT session_key, count(*) AS rows FROM gone GROUP BY session_key
)
UPDATE sessions s
SET cleared_through = f.through,
    active_id = GREATEST(s.active_id, f.through),
    message_count = s.message_count - COALESCE(c.rows, 0),
    last_id = CASE WHEN s.last_id > f.through THEN s.last_id END,
    archived_through = CASE WHEN s.archived_through > f.through THEN s.archived_through END,
    session_id = CASE WHEN f.deletes THEN '' ELSE s.session_id END,
    user_id = CASE WHEN NOT f.deletes THEN s.user_id END,
    document = CASE WHEN NOT f.deletes THEN s.document END,
    -- A replay that begins with the deletion brings the document of what was made after it again.
    document_id = CASE WHEN f.deletes THEN '00000000-0000-0000-0000-000000000000'::uuid
                       ELSE s.document_id END,
    summary = NULL,
    summary_through = '00000000-0000-0000-0000-000000000000',
    deleted = s.deleted OR f.deletes
FROM forgotten f LEFT JOIN counted c USING (session_key)
WHERE s.session_key = f.session_key
RETURNING COALESCE(c.rows, 0) AS messages
"""

# The only conflict that is passed over is that of a message's id: the message is there already.
INSERT_MESSAGES: Final[LiteralString] = """
INSERT INTO messages (session_key, id, tenant, role, body, user_id, words)
SELECT m.session_key, m.id, s.tenant, m.role, m.body, COALESCE(s.user_id, m.user_id),
       m.words::tsvector
FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::json[], $5::text[], $6::text[])
  AS m (session_key, id, role, body, user_id, words)
JOIN sessions s USING (session_key)
WHERE m.id > s.cleared_through
ON CONFLICT (session_key, id) DO NOTHING
RETURNING session_key, id
"""

# For sessions that had messages before they had an owner: that of their row, which a late batch
# from before a deletion does not change.
CLAIM_MESSAGES: Final[LiteralString] = """
UPDATE messages m
SET user_id = s.user_id
FROM sessions s
WHERE s.session_key = ANY($1::uuid[]) AND m.session_key = s.session_key
  AND m.user_id IS NULL AND s.user_id IS NOT NULL
"""

# Counters grow by the rows that were really inserted. An entry from before a clear or a deletion
# that is already applied is below cleared_through and touches nothing.
TOUCH_SESSIONS: Final[LiteralString] = """
UPDATE sessions s
SET message_count = s.message_count + t.inserted,
    active_id = GREATEST(s.active_id, t.active_id),
    last_id = GREATEST(s.last_id, t.last_id),
    archived_through = GREATEST(s.archived_through, t.last_id),
    user_id = COALESCE(s.user_id, t.user_id),
    document = CASE WHEN t.document_id > s.document_id THEN t.document ELSE s.document END,
    document_id = GREATEST(s.document_id, t.document_id),
    born_id = CASE WHEN s.deleted THEN t.born_id ELSE s.born_id END,
    session_id = t.session_id,
    deleted = false
FROM unnest($1::uuid[], $2::bigint[], $3::uuid[], $4::uuid[], $5::text[], $6::json[],
            $7::uuid[], $8::uuid[], $9::text[])
  AS t (session_key, inserted, active_id, last_id, user_id, document, document_id, born_id,
        session_id)
WHERE s.session_key = t.session_key AND t.active_id >= s.cleared_through
"""


# A summary never goes back, and says nothing of what was cleared away since.
SUMMARISE: Final[LiteralString] = """
UPDATE sessions s
SET summary = t.summary, summary_through = t.through
FROM unnest($1::uuid[], $2::json[], $3::uuid[]) AS t (session_key, summary, through)
WHERE s.session_key = t.session_key AND NOT s.deleted
  AND t.through > s.summary_through AND t.through > s.cleared_through
"""


class PostgresArchiveWriter:
    """ArchiveWriter in PostgreSQL."""

    def __init__(self, door: PostgresDoor, observer: Observer) -> None:
        self._door = door
        self._observer = observer

    async def write(self, batch: Batch) -> Written:
        try:
            return await self._write(batch)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            # A body that is no JSON of ours or nests too deeply, or text that is no UTF-8.
            raise ArchiveRefused(UNDECODABLE) from error

    async def _write(self, batch: Batch) -> Written:
        if any(entry.kind == "message" and not entry.role for entry in batch.entries):
            raise ArchiveRefused(UNDECODABLE)
        changes = changes_of(batch)
        # Made before anything is locked: large messages take their time.
        said = [entry for change in changes.values() for entry in change.messages]
        vectors = await vectors_of(entry.body for entry in said)
        words = dict(zip((entry.id for entry in said), vectors, strict=True))
        async with self._door.transaction() as connection:
            locked = await self._lock(connection, changes)
            forgotten = await newly_forgotten(connection, changes, locked)
            await _forget(connection, changes)
            inserted = await _insert(connection, changes, words)
            await _touch(connection, changes, inserted)
            if claims := [key for key, row in locked.items() if row.claimed]:
                await connection.execute(CLAIM_MESSAGES, claims)
            await _summarise(connection, changes)
            await grow_counters(connection, counts_of(changes, locked, inserted, forgotten))

        offered = sum(1 for entry in batch.entries if entry.kind == "message")
        rows = sum(map(len, inserted.values()))
        known = offered - rows - sum(map(len, forgotten.values()))
        return Written(rows=rows, duplicates=known)

    async def _lock(
        self, connection: Connection, changes: dict[str, SessionChange]
    ) -> dict[str, Locked]:
        keys = list(changes)
        await connection.execute(
            MAKE_SESSIONS,
            keys,
            [change.ref.tenant for change in changes.values()],
            [change.ref.session_id for change in changes.values()],
            [change.first_id for change in changes.values()],
        )
        rows = await connection.fetch(LOCK_SESSIONS, keys)
        conflicts = 0
        locked: dict[str, Locked] = {}
        for row in rows:
            key = str(row["session_key"])
            change = changes[key]
            if not is_row_of(change.ref, row["tenant"], row["session_id"]):
                # Never silent: two sessions with one 128-bit hash would share their messages.
                raise AssertionError("two sessions have the same key")
            owner, claimed = row["user_id"], change.user_id
            conflicts += owner is not None and claimed not in {None, owner} and not change.deletes
            locked[key] = Locked(
                owner=owner,
                cleared_through=MessageId(str(row["cleared_through"])),
                claimed=bool(owner is None and claimed is not None and row["message_count"]),
            )
        if conflicts:
            self._observer.observe(OwnerConflict(count=conflicts))
        return locked


async def _forget(connection: Connection, changes: dict[str, SessionChange]) -> None:
    forgotten = [(key, change) for key, change in changes.items() if change.through]
    if not forgotten:
        return
    await connection.execute(
        FORGET,
        [key for key, _ in forgotten],
        [change.through for _, change in forgotten],
        [change.deletes for _, change in forgotten],
    )


async def _insert(
    connection: Connection, changes: dict[str, SessionChange], words: dict[MessageId, str]
) -> dict[str, set[str]]:
    """Ids inserted per session."""
    entries = [(key, entry) for key, change in changes.items() for entry in change.messages]
    if not entries:
        return {}
    rows = await connection.fetch(
        INSERT_MESSAGES,
        [key for key, _ in entries],
        [entry.id for _, entry in entries],
        [entry.role for _, entry in entries],
        [entry.body for _, entry in entries],
        [changes[key].user_id for key, _ in entries],
        [words[entry.id] for _, entry in entries],
    )
    inserted: dict[str, set[str]] = {}
    for row in rows:
        inserted.setdefault(str(row["session_key"]), set()).add(str(row["id"]))
    return inserted


async def _touch(
    connection: Connection, changes: dict[str, SessionChange], inserted: dict[str, set[str]]
) -> None:
    touched = [(key, change) for key, change in changes.items() if change.active_id]
    if not touched:
        return
    documents = [change.document for _, change in touched]
    await connection.execute(
        TOUCH_SESSIONS,
        [key for key, _ in touched],
        [len(inserted.get(key, ())) for key, _ in touched],
        [change.active_id for _, change in touched],
        [change.messages[-1].id if change.messages else None for _, change in touched],
        [change.user_id for _, change in touched],
        [entry.body or None if entry else None for entry in documents],
        [entry.id if entry else None for entry in documents],
        [change.born_id for _, change in touched],
        [change.ref.session_id for _, change in touched],
    )


async def _summarise(connection: Connection, changes: dict[str, SessionChange]) -> None:
    summed = [(key, change.summary) for key, change in changes.items() if change.summary]
    if not summed:
        return
    await connection.execute(
        SUMMARISE,
        [key for key, _ in summed],
        [entry.body for _, entry in summed],
        [decode_covered(entry.body) for _, entry in summed],
    )
