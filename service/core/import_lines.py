"""Lines of an import: cut out of a stream of bytes, and taken apart into messages."""

import re
from collections.abc import AsyncGenerator, AsyncIterator
from datetime import datetime
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec import Meta

from service.domain.errors import FieldError, InvalidRequest, InvalidValue, TooLarge
from service.domain.ids import TurnId, check_id
from service.domain.messages import MessageBody, Role, Status, check_message

BOM: Final = b"\xef\xbb\xbf"
_NAMED_FIELD: Final = re.compile(r"(?:missing required|unknown) field `([^`]+)`")

Line = TypeVar("Line")


class ImportLine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A message to import: the fields of an append and of this service's own export."""

    role: Role
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    metadata: dict[str, Any] | None = None
    turn_id: TurnId | None = None
    status: Status | None = None
    created_at: Annotated[
        datetime | None,
        Meta(description="When it was said, with a time zone. Without it: the line before's."),
    ] = None
    type: Annotated[Literal["message"] | None, Meta(description="Of an export; ignored.")] = None
    id: Annotated[str | None, Meta(description="Of an export; ignored.")] = None
    session_id: Annotated[str | None, Meta(description="Of an export; ignored.")] = None
    token_count: Annotated[int | None, Meta(description="Of an export; ignored.")] = None

    def body(self) -> MessageBody:
        return MessageBody(
            role=self.role,
            content=self.content,
            name=self.name,
            tool_calls=self.tool_calls,
            tool_call_id=self.tool_call_id,
            metadata=self.metadata,
            turn_id=self.turn_id,
            status=self.status,
        )


class Numbered(msgspec.Struct, frozen=True):
    """A message and the line that it stood in, which errors name."""

    number: int
    size: int
    """Bytes of the line."""
    line: ImportLine


async def split_lines(
    chunks: AsyncIterator[bytes], *, line_bytes_max: int
) -> AsyncGenerator[tuple[int, bytes]]:
    """Numbers and texts of the lines that are not blank, whatever the chunks' borders.

    Raises TooLarge naming the line as soon as it is too long: no more than the limit and a chunk
    is held.
    """
    number, pending = 1, bytearray()
    async for chunk in chunks:
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            pending += end
            _check_length(number, pending, line_bytes_max)
            text = _shown(number, pending)
            pending.clear()
            if text:
                yield number, text
            number += 1
        pending += rest
        _check_length(number, pending, line_bytes_max)
    if text := _shown(number, pending):
        yield number, text


def decode_line(decoder: "msgspec.json.Decoder[Line]", number: int, text: bytes) -> Line:
    """Raises InvalidRequest or InvalidValue, naming line and field."""
    try:
        return decoder.decode(text)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at `")
        field = place.rstrip("`").removeprefix("$").removeprefix(".")
        if named := _NAMED_FIELD.search(message):
            field = f"{field}.{named[1]}" if field else named[1]
        if "RFC3339" in message:
            # A text, as the schema wants it, and no time.
            raise InvalidValue.of(in_line(number, field), "is not an RFC 3339 time") from error
        raise _misfit(in_line(number, field), message) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        # Only the first words of a decoder's sentence are sure to quote nothing.
        raise _misfit(in_line(number), "is not JSON in UTF-8") from error
    except RecursionError as error:
        raise _misfit(in_line(number), "is nested too deeply") from error


def checked_body(line: ImportLine, number: int, *, bytes_max: int) -> MessageBody:
    """Raises InvalidValue naming line, field and limit."""
    body = line.body()
    check_message(body, in_line(number), bytes_max=bytes_max)
    if body.turn_id is not None:
        check_id(body.turn_id, in_line(number, "turn_id"))
    return body


def in_line(number: int, field: str = "") -> str:
    """The name of a line or of a field in it, as errors say it."""
    return f"line {number}.{field}" if field else f"line {number}"


def empty_body() -> InvalidValue:
    return InvalidValue.of("body", "must have at least one message")


def _check_length(number: int, pending: bytearray, line_bytes_max: int) -> None:
    if len(pending) > line_bytes_max:
        raise TooLarge.of(in_line(number), f"must be at most {line_bytes_max} bytes")


def _shown(number: int, pending: bytearray) -> bytes:
    text = bytes(pending).strip(b" \t\r")
    return text.removeprefix(BOM).strip(b" \t\r") if number == 1 else text


def _misfit(field: str, message: str) -> InvalidRequest:
    return InvalidRequest(f"{field}: {message}", errors=[FieldError(field=field, message=message)])
