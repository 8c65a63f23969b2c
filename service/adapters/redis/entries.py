"""Journal entries as Redis keeps them."""

from collections.abc import Mapping
from typing import Final

from service.domain.ids import MessageId, message_id
from service.domain.journal import Entry, EntryKind, Unreadable
from service.domain.messages import role_of
from service.domain.sessions import SessionRef

KINDS: Final[dict[bytes, EntryKind]] = {
    b"m": "message",
    b"c": "clear",
    b"s": "document",
    b"d": "delete",
    b"u": "summary",
}
ROLE_FIRST: Final = b'{"role":"'


def entry_of(position: str, fields: Mapping[bytes, bytes]) -> Entry | Unreadable | None:
    """None for a kind that this release does not know: another one wrote it."""
    milliseconds, _, counter = position.partition("-")
    try:
        kind = fields[b"k"]
        if kind not in KINDS:
            return None
        body = fields[b"b"]
        return Entry(
            position=position,
            kind=KINDS[kind],
            ref=SessionRef(fields[b"t"].decode(), fields[b"s"].decode()),
            id=message_id(int(milliseconds), int(counter), int(fields[b"r"])),
            user_id=fields[b"u"].decode() or None,
            role=_role(body) if kind == b"m" else "",
            body=body,
        )
    except (KeyError, ValueError):
        # A text that is no UTF-8 is a ValueError too.
        return Unreadable(position=position, size=len(fields.get(b"b", b"")))


def position_id(position: str) -> MessageId:
    """An id in the place of an entry whose own is not known."""
    milliseconds, _, counter = position.partition("-")
    return message_id(int(milliseconds), int(counter), 0)


def _role(body: bytes) -> str:
    """'' for a body that is not of ours: the archive's writer refuses it."""
    return role_of(body) if body.startswith(ROLE_FIRST) and body.count(b'"') > 3 else ""  # noqa: PLR2004  # The name's and the value's.
