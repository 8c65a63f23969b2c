"""Messages: what is said in a session, as it was given."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final, Literal, cast

import msgspec

from service.domain.errors import InvalidValue
from service.domain.ids import ID_BYTES_MAX, MessageId, TurnId, id_time

Role = Literal["system", "developer", "user", "assistant", "tool"]
Status = Literal["incomplete"]
Content = str | list[dict[str, Any]] | None

PINNED_ROLES: Final[frozenset[str]] = frozenset({"system", "developer"})
"""Roles that no window drops."""

CALL_ID_BYTES_MAX: Final = 16 * 1024
"""Some models' servers put signatures into the ids of tool calls."""
METADATA_BYTES_MAX: Final = 16 * 1024
JSON_DEPTH_MAX: Final = 64
"""Objects and lists within one another in free JSON."""
BATCH_MESSAGES_MAX: Final = 1000
"""Messages in one append."""


class TurnCost(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A turn as its model's server counted it; cached and reasoning tokens are among the others."""

    model: str
    input_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    goes_on: bool = False
    """Of a turn that was counted before: it goes on with results of tools."""


class MessageBody(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A message without its identity: what a caller gives and what the stores keep as JSON.

    ``role`` stays the first field: the Redis scripts find it at a fixed place.
    """

    role: Role
    content: Content = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    metadata: dict[str, Any] | None = None
    turn_id: TurnId | None = None
    status: Status | None = None
    token_count: int | None = None
    """Tokens of what is said and called, in the vocabulary of ``tokenizer``."""
    tokenizer: str | None = None
    """None for the default vocabulary."""
    cost: TurnCost | None = None
    """What a turn's answer cost; no caller is shown it with the message."""
    said_at: datetime | None = msgspec.field(default=None, name="created_at")
    """When it was said, of an imported message whose id has another time; in UTC."""

    def without_time_of(self, identity: MessageId) -> "MessageBody":
        """The body as it is stored under an id, which may tell the time already."""
        if self.said_at != id_time(identity):
            return self
        return msgspec.structs.replace(self, said_at=None)


class Message(MessageBody, frozen=True, kw_only=True, omit_defaults=True):
    """A message that was accepted."""

    id: MessageId

    @property
    def created_at(self) -> datetime:
        return self.said_at or id_time(self.id)


_encoder: Final = msgspec.json.Encoder()
_decoder: Final = msgspec.json.Decoder(list[Message])


class _Said(msgspec.Struct):
    content: Content = None


_content_decoder: Final = msgspec.json.Decoder(_Said)


class _Costed(msgspec.Struct):
    cost: TurnCost | None = None


_cost_decoder: Final = msgspec.json.Decoder(_Costed)


class _Counted(msgspec.Struct):
    token_count: int | None = None


_count_decoder: Final = msgspec.json.Decoder(_Counted)


def encode_body(body: MessageBody) -> bytes:
    """JSON text of the body: UTF-8, no spaces, ``role`` first."""
    return _encoder.encode(body)


def with_id(identity: str, body: bytes) -> bytes:
    """JSON text of a message from its id and the JSON text of its body."""
    return b'{"id":"' + identity.encode() + b'",' + body[1:]


def id_of(text: bytes) -> MessageId:
    """The id in a JSON text that ``with_id`` or the Redis scripts made, without decoding it."""
    return MessageId(text[7:43].decode())


def role_of(body: bytes) -> str:
    """The role in an encoded body, without decoding it."""
    # encode_body puts it first, and no role contains a quote.
    return body[9 : body.index(b'"', 9)].decode()


def role_in(text: bytes) -> str:
    """The role in such a text, without decoding it."""
    return text[53 : text.index(b'"', 53)].decode()


def is_pinned(text: bytes) -> bool:
    """Whether such a text is of a role that no window drops."""
    return text[53:].startswith((b'system"', b'developer"'))


def decode_messages(texts: Sequence[bytes]) -> list[Message]:
    """Messages from the JSON texts that ``with_id`` or the Redis scripts made."""
    return _decoder.decode(b"[" + b",".join(texts) + b"]")


def content_of(body: bytes) -> Content:
    """The content of an encoded body, without the rest of it."""
    return _content_decoder.decode(body).content


def cost_of_body(body: bytes) -> TurnCost | None:
    """The cost in an encoded body; most have none, and are not decoded for it."""
    return _cost_decoder.decode(body).cost if b'"cost":' in body else None


def tokens_in(texts: Iterable[bytes]) -> int:
    """Tokens of such texts by the counts that they came with; none where they came without."""
    return sum(_count_decoder.decode(text).token_count or 0 for text in texts)


def check_message(body: MessageBody, field: str, *, bytes_max: int) -> None:
    """Raises InvalidValue that names the field and the limit."""
    prefix = f"{field}." if field else ""
    _check_content(body, f"{prefix}content", bytes_max)
    if body.tool_calls is not None:
        check_json_size(body.tool_calls, f"{prefix}tool_calls", bytes_max)
    if body.metadata is not None:
        check_json_size(body.metadata, f"{prefix}metadata", METADATA_BYTES_MAX)
    _check_label(body.name, f"{prefix}name")
    if body.tool_call_id is not None:
        check_text(body.tool_call_id, f"{prefix}tool_call_id", bytes_max=CALL_ID_BYTES_MAX)
    if body.role == "tool" and body.tool_call_id is None:
        raise InvalidValue.of(f"{prefix}tool_call_id", "is required for the role tool")


def check_text(text: str, field: str, *, bytes_max: int) -> str:
    """Accept a text that must not be empty; raises InvalidValue naming the field and limit."""
    size = len(text.encode())
    if not 1 <= size <= bytes_max:
        raise InvalidValue.of(field, f"must be 1 to {bytes_max} bytes of UTF-8, is {size}")
    if "\x00" in text:
        raise InvalidValue.of(field, "must not contain NUL characters")
    return text


def newest(messages: Sequence[Message], last: int | None) -> Sequence[Message]:
    """The end of an ordered session that has ``last`` messages of roles that are not pinned.

    None for all. Pinned ones between those are part of it.
    """
    if last is None:
        return messages
    spoken = 0
    for place in range(len(messages) - 1, -1, -1):
        if messages[place].role not in PINNED_ROLES:
            spoken += 1
        if spoken == last:
            return messages[place:]
    return messages


def check_json(value: object, field: str) -> None:
    """Accept free JSON of a caller's; raises InvalidValue for deep nesting and NUL characters.

    Without recursion: what it checks may be deeper than Python can go.
    """
    waiting: list[tuple[object, int]] = [(value, 1)]
    while waiting:
        item, depth = waiting.pop()
        match item:
            case str():
                if "\x00" in item:
                    raise InvalidValue.of(field, "must not contain NUL characters")
                continue
            case dict():
                pairs = cast("dict[str, object]", item)
                inner = [*pairs.keys(), *pairs.values()]
            case list():
                inner = cast("list[object]", item)
            case _:
                continue
        if depth > JSON_DEPTH_MAX:
            raise InvalidValue.of(field, f"must not nest deeper than {JSON_DEPTH_MAX}")
        waiting += ((one, depth + 1) for one in inner)


def _check_content(body: MessageBody, field: str, bytes_max: int) -> None:
    match body.content:
        case None:
            if not body.tool_calls:
                raise InvalidValue.of(field, "may be null only beside tool_calls")
        case str() as text:
            _check_content_text(body, text, field, bytes_max)
        case list() as parts:
            check_parts(parts, field, bytes_max=bytes_max)


def _check_content_text(body: MessageBody, text: str, field: str, bytes_max: int) -> None:
    may_be_empty = body.role == "tool" or bool(body.tool_calls)
    if not text and not may_be_empty:
        raise InvalidValue.of(field, "must not be empty")
    size = len(text.encode())
    if size > bytes_max:
        raise InvalidValue.of(field, f"must be at most {bytes_max} bytes, is {size}")
    if "\x00" in text:
        raise InvalidValue.of(field, "must not contain NUL characters")


def check_parts(parts: list[dict[str, Any]], field: str, *, bytes_max: int) -> None:
    """Accept content in typed parts; raises InvalidValue naming the part and the limit."""
    if not parts:
        raise InvalidValue.of(field, "must not be empty")
    for place, part in enumerate(parts):
        if not isinstance(part.get("type"), str):
            raise InvalidValue.of(f"{field}[{place}].type", "must name the part's type")
    check_json_size(parts, field, bytes_max)


def check_json_size(value: object, field: str, bytes_max: int) -> None:
    """As ``check_json``, and for a limit of its JSON text in bytes."""
    check_json(value, field)
    size = len(_encoder.encode(value))
    if size > bytes_max:
        raise InvalidValue.of(field, f"must be at most {bytes_max} bytes of JSON, is {size}")


def _check_label(text: str | None, field: str) -> None:
    if text is not None:
        check_text(text, field, bytes_max=ID_BYTES_MAX)
