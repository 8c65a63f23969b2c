"""What the clients and the watcher write down, and what is found at the end."""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import msgspec

Operation = Literal["append", "chat", "read", "clear"]
Outcome = Literal["acked", "refused", "unknown"]


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    api: str
    start: float
    end: float
    status: int | None = None
    """None: no answer came."""
    code: str = ""
    """Of the problem, or the name of the client's own error."""


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One call of a client with all its attempts. Times are monotonic seconds of one machine."""

    client: str
    operation: Operation
    session: str
    start: float
    end: float
    outcome: Outcome
    attempts: tuple[Attempt, ...]
    keyed: bool = False
    durability: str = ""
    texts: tuple[str, ...] = ()
    """Of an append or a chat: what was said."""
    ids: tuple[str, ...] = ()
    """As acknowledged, in the order of ``texts``; of a chat also the answer's, where it has one."""
    shown: int = -1
    """Of a chat: how many earlier messages the model was shown."""
    archive_only: bool = False
    """Of a read: of PostgreSQL, which may lag behind all but what waited for it."""
    limit: int = 0
    after: str = ""
    """Of a read that asked for what follows an id; others ask for the newest."""
    rows: tuple["Row", ...] = ()
    """What a read showed, oldest first."""

    @property
    def said(self) -> tuple[tuple[str, str], ...]:
        """Role and text of all that the call may leave behind."""
        if self.operation != "chat":
            return tuple(("user", text) for text in self.texts)
        return (("user", self.texts[0]), ("assistant", answer_to(self.texts[0])))


class Row(msgspec.Struct, frozen=True):
    id: str
    role: str
    text: str


class Exposed(msgspec.Struct, frozen=True, kw_only=True):
    """The watcher saw unflushed entries that had a lifetime."""

    at: float
    key: str


class StoredSession(msgspec.Struct, frozen=True, kw_only=True):
    readers: dict[str, tuple[Row, ...]]
    """By API process: the whole session, read through it."""
    archive: tuple[Row, ...]
    """The rows in PostgreSQL, by id."""
    message_count: int
    last_id: str | None
    unflushed: int = 0
    """Of the hot head."""


class Final(msgspec.Struct, frozen=True, kw_only=True):
    sessions: dict[str, StoredSession]
    journal_entries: int
    counted_messages: int
    """Sum of the daily counters: all that was ever archived."""


def write_lines(path: Path, records: Iterable[msgspec.Struct]) -> None:
    encoder = msgspec.json.Encoder()
    path.write_bytes(b"".join(encoder.encode(record) + b"\n" for record in records))


def read_calls(path: Path) -> list[Call]:
    decoder = msgspec.json.Decoder(Call)
    return [decoder.decode(line) for line in path.read_bytes().splitlines()]


def answer_to(text: str) -> str:
    """The model of these runs echoes."""
    return f"echo: {text}"
