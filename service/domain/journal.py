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


class ShardBacklog(msgspec.Struct, frozen=True, kw_only=True):
    shard: int
    entries: int
    bytes: int
    """Of the entries' bodies, together."""
    oldest_milliseconds: int | None
    """Unix time of the oldest entry, by the journal's own clock."""
    now_milliseconds: int
    owner: str | None

    @property
    def oldest_age_seconds(self) -> float:
        if self.oldest_milliseconds is None:
            return 0.0
        return max(0, self.now_milliseconds - self.oldest_milliseconds) / 1000
