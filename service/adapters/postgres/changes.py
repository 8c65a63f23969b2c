"""What a batch of the journal does to each of its sessions."""

import msgspec

from service.adapters.postgres.keys import session_key
from service.domain.ids import MessageId
from service.domain.journal import Batch, Entry
from service.domain.sessions import SessionRef


class SessionChange(msgspec.Struct, kw_only=True):
    """What a batch does to one session: an optional forgetting, then what came after it."""

    ref: SessionRef
    first_id: MessageId
    through: MessageId | None = None
    deletes: bool = False
    messages: list[Entry] = msgspec.field(default_factory=list[Entry])
    forgotten: list[Entry] = msgspec.field(default_factory=list[Entry])
    """Said and forgotten in this batch: never stored, but counted."""
    forgotten_later: list[Entry] = msgspec.field(default_factory=list[Entry])
    """Likewise, after a deletion in this batch: the session had no owner before it then."""
    document: Entry | None = None
    summary: Entry | None = None
    user_id: str | None = None
    born_id: MessageId | None = None
    active_id: MessageId | None = None

    def take(self, entry: Entry) -> None:
        match entry.kind:
            case "message":
                self.messages.append(entry)
            case "document":
                self.document = entry
            case "summary":
                self.summary = entry
                return
            case "clear":
                self._forget(entry)
            case "delete":
                self._forget(entry)
                self._end()
                return
        self.user_id = entry.user_id or self.user_id
        self.born_id = self.born_id or entry.id
        self.active_id = entry.id

    def _forget(self, entry: Entry) -> None:
        self.through = entry.id
        (self.forgotten_later if self.deletes else self.forgotten).extend(self.messages)
        self.messages = []
        self.summary = None

    def _end(self) -> None:
        # Unlike a clear, which leaves the session and its settings as they are.
        self.deletes = True
        self.document = None
        self.user_id = None
        self.born_id = None
        self.active_id = None


def changes_of(batch: Batch) -> dict[str, SessionChange]:
    """Per session, by key, in the order of the keys."""
    by_ref: dict[SessionRef, SessionChange] = {}
    for entry in batch.entries:
        change = by_ref.get(entry.ref)
        if change is None:
            change = by_ref[entry.ref] = SessionChange(ref=entry.ref, first_id=entry.id)
        change.take(entry)
    return dict(sorted((str(session_key(ref)), change) for ref, change in by_ref.items()))
