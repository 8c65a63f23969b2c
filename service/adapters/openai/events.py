"""Server-sent events, out of bytes that are cut anywhere."""

from collections.abc import Iterator
from typing import Final

import msgspec

from service.domain.errors import ModelError

EVENT_BYTES_MAX: Final = 1024 * 1024
"""Of one line, and of one event's lines together."""

BOM: Final = b"\xef\xbb\xbf"


class Event(msgspec.Struct, frozen=True, kw_only=True):
    name: bytes
    """Empty where the server gave none."""
    data: bytes


class EventDecoder:
    """Takes bytes as they come and tells the events that are whole.

    Lines end with LF, CR or CRLF. Comments, ids and fields of other names are passed over. Raises
    ModelError at an event above EVENT_BYTES_MAX.
    """

    def __init__(self) -> None:
        self._line = bytearray()
        self._name = b""
        self._data: list[bytes] = []
        self._size = 0
        self._first_line = True
        self._after_carriage_return = False

    def feed(self, chunk: bytes) -> Iterator[Event]:
        if self._after_carriage_return and chunk:
            # The other half of a line end, not an empty line.
            chunk = chunk.removeprefix(b"\n")
            self._after_carriage_return = False
        if chunk.endswith(b"\r"):
            self._after_carriage_return = True
        for piece in chunk.splitlines(keepends=True):
            text = piece.rstrip(b"\r\n")
            self._grow(len(text))
            self._line += text
            if len(text) < len(piece) and (event := self._take_line()):
                yield event

    def end(self) -> Iterator[Event]:
        """What a server meant that left out the last empty line."""
        if self._line:
            self._take_line()
        if event := self._take_event():
            yield event

    def _grow(self, size: int) -> None:
        self._size += size
        if self._size > EVENT_BYTES_MAX:
            raise ModelError(f"The model sent an event of more than {EVENT_BYTES_MAX} bytes.")

    def _take_line(self) -> Event | None:
        line = bytes(self._line)
        self._line.clear()
        if self._first_line:
            self._first_line = False
            line = line.removeprefix(BOM)
        if not line:
            return self._take_event()

        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
        else:
            # Only data is kept, so that a server may send comments for ever.
            self._size -= len(line)
            if name == b"event":
                self._name = value
        return None

    def _take_event(self) -> Event | None:
        name, data = self._name, self._data
        self._name, self._data, self._size = b"", [], 0
        return Event(name=name, data=b"\n".join(data)) if data else None
