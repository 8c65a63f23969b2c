"""What a batch of the journal adds to the counters: what it says for the first time."""

from typing import Final, LiteralString

import msgspec

from service.adapters.postgres.changes import SessionChange
from service.adapters.postgres.door import Connection
from service.domain.ids import MessageId
from service.domain.journal import Entry
from service.domain.statistics import Counted, Place, count_messages

# Of messages that are forgotten in the batch that brings them: those that an earlier batch brought.
FIND_MESSAGES: Final[LiteralString] = """
SELECT m.id
FROM messages m JOIN unnest($1::uuid[], $2::uuid[]) AS f (session_key, id) USING (session_key, id)
"""


class Locked(msgspec.Struct, frozen=True, kw_only=True):
    """A session's row before the batch."""

    owner: str | None
    cleared_through: MessageId
    claimed: bool
    """It has messages and may get its first owner."""


async def newly_forgotten(
    connection: Connection, changes: dict[str, SessionChange], locked: dict[str, Locked]
) -> dict[str, list[Entry]]:
    """Messages that this batch brings and forgets, and that no earlier one brought."""
    fresh = {
        key: [
            entry
            for entry in [*change.forgotten, *change.forgotten_later]
            if entry.id > locked[key].cleared_through
        ]
        for key, change in changes.items()
        if change.forgotten or change.forgotten_later
    }
    pairs = [(key, entry.id) for key, entries in fresh.items() for entry in entries]
    if not pairs:
        return {}
    columns = [list(column) for column in zip(*pairs, strict=True)]
    known = {str(row["id"]) for row in await connection.fetch(FIND_MESSAGES, *columns)}
    return {
        key: [entry for entry in entries if entry.id not in known] for key, entries in fresh.items()
    }


def counts_of(
    changes: dict[str, SessionChange],
    locked: dict[str, Locked],
    inserted: dict[str, set[str]],
    forgotten: dict[str, list[Entry]],
) -> dict[Place, Counted]:
    """Of the rows that were inserted, and of what was forgotten before it was one."""
    counts: dict[Place, Counted] = {}
    for key, ids in inserted.items():
        change = changes[key]
        said = [(entry.id, entry.body) for entry in change.messages if entry.id in ids]
        owner = (None if change.deletes else locked[key].owner) or change.user_id
        count_messages(change.ref.tenant, owner, key, said, counts)
    for key, entries in forgotten.items():
        change = changes[key]
        later = {entry.id for entry in change.forgotten_later}
        for entry in entries:
            owner = entry.user_id or (None if entry.id in later else locked[key].owner)
            said = [(entry.id, entry.body)]
            count_messages(change.ref.tenant, owner, key, said, counts)
    return counts
