"""The write-behind queue in the words of the domain: entries, batches and what became of them."""

from typing import Literal

import msgspec

from service.domain.ids import MessageId
from service.domain.sessions import SessionRef

EntryKind = Literal["message", "clear", "document", "delete", "summary"]


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One accepted event that the archive has not got yet."""

    position: str
    """Where it stands in its shard's stream."""
    kind: EntryKind
    ref: SessionRef
    id: MessageId
    user_id: str | None
    role: str
    """The role of a message; empty for the other kinds."""
    body: bytes
    """JSON text: a message's body, a session's document or its summary; empty for the others."""

    @property
    def size(self) -> int:
        return len(self.body)


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """Entries in order: within a session the order of their ids."""

    entries: tuple[Entry, ...]


class Written(msgspec.Struct, frozen=True, kw_only=True):
    """What a commit changed; a replay inserts no rows."""

    rows: int
    duplicates: int


class Acknowledgement(msgspec.Struct, frozen=True, kw_only=True):
    """A run of entries at the head of a shard that the archive has committed."""

    entries: tuple[Entry, ...]


class Unreadable(msgspec.Struct, frozen=True, kw_only=True):
    """An entry that no release of this service writes: its fields are missing or no text."""

    position: str
    size: int


Refused = Literal["buried", "forgotten", "moved", "full", "kept"]
"""What became of an entry that the archive refuses: a dead letter; nothing, for what it says was
cleared or deleted since; it was not the oldest any more; there are too many letters; or it is a
clear or a deletion, which is never moved aside: what it forgets would come back."""


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """An entry that the archive refused for its content, out of the way of the others."""

    id: MessageId
    shard: int
    reason: str
    """SQLSTATE or a word of ours, of the last attempt."""
    first_seen_milliseconds: int
    last_attempt_milliseconds: int
    attempts: int
    bytes: int
    entry: Entry | None
    """None where it cannot be read: there is nothing to retry."""


class ShardBacklog(msgspec.Struct, frozen=True, kw_only=True):
    shard: int
    entries: int
    bytes: int
    """Of the entries' bodies, together."""
    dead_letters: int = 0
    oldest_milliseconds: int | None
    """Unix time of the oldest entry, by the journal's own clock."""
    now_milliseconds: int
    owner: str | None

    @property
    def oldest_age_seconds(self) -> float:
        if self.oldest_milliseconds is None:
            return 0.0
        return max(0, self.now_milliseconds - self.oldest_milliseconds) / 1000
