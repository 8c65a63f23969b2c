"""Message ids: UUIDv7-shaped values that sort in the order in which they were accepted.

Layout, from the highest bit: 48 bits of Unix milliseconds, the version 7, 12 counter bits, the
variant, 20 more counter bits, 42 random bits. Milliseconds and counter come from the stream id
that Redis gave the message (``<ms>-<counter>``), so ids of a session are strictly increasing also
when a clock steps back: Redis then counts on within the last millisecond.

``service/adapters/redis/scripts/session.lua`` builds the same layout; a test holds the two equal.
"""

import re
import secrets
from datetime import UTC, datetime, timedelta
from typing import Final, NewType

from service.domain.errors import InvalidValue

MessageId = NewType("MessageId", str)
"""36 characters, lower case: comparing the text is comparing the order."""

TurnId = NewType("TurnId", str)

ZERO_ID: Final = MessageId("00000000-0000-0000-0000-000000000000")
"""Below every message id."""

HIGHEST_ID: Final = MessageId("ffffffff-ffff-ffff-ffff-ffffffffffff")
"""Above every message id."""

MILLISECONDS_MAX: Final = (1 << 48) - 1
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND: Final = timedelta(milliseconds=1)
COUNTER_MAX: Final = (1 << 32) - 1
RANDOM_MAX: Final = (1 << 42) - 1
ID_BYTES_MAX: Final = 255
"""Longest session, user, tenant or turn id, in UTF-8 bytes."""

_UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def message_id(milliseconds: int, counter: int, random: int) -> MessageId:
    """Build an id; ``counter`` is at most 32 bits and ``random`` at most 42."""
    low = ((counter & 0x3F) << 42) | random
    return MessageId(
        f"{milliseconds >> 16:08x}-{milliseconds & 0xFFFF:04x}-{0x7000 | counter >> 20:04x}"
        f"-{0x8000 | (counter >> 6) & 0x3FFF:04x}-{low:012x}"
    )


def split_id(value: MessageId) -> tuple[int, int]:
    """Milliseconds and counter of an id."""
    bits = int(value.replace("-", ""), 16)
    counter = ((bits >> 64) & 0xFFF) << 20 | (bits >> 42) & 0xFFFFF
    return bits >> 80, counter


def next_id(previous: MessageId | None, milliseconds: int) -> MessageId:
    """Return an id for now that sorts above ``previous``, also when the clock stepped back."""
    if previous is None:
        return message_id(milliseconds, 0, random_bits())
    last_milliseconds, last_counter = split_id(previous)
    if milliseconds > last_milliseconds:
        return message_id(milliseconds, 0, random_bits())
    if last_counter == COUNTER_MAX:
        return message_id(last_milliseconds + 1, 0, random_bits())
    return message_id(last_milliseconds, last_counter + 1, random_bits())


def random_bits() -> int:
    return secrets.randbits(42)


def id_milliseconds(value: str) -> int:
    return int(value[:8] + value[9:13], 16)


def id_time(value: str) -> datetime:
    """When the message was accepted, to the millisecond, in UTC."""
    return time_of(id_milliseconds(value))


def time_of(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, tz=UTC)


def first_id_at(milliseconds: int) -> MessageId:
    """Not above any id of this millisecond or later: a bound, no message has it."""
    return message_id(milliseconds, 0, 0)


def last_id_before(milliseconds: int) -> MessageId:
    """Not below any id from before this millisecond: a bound, no message has it."""
    return message_id(milliseconds - 1, COUNTER_MAX, RANDOM_MAX)


def milliseconds_of(time: datetime, field: str) -> int:
    """Unix time of a moment from outside, rounded up; raises InvalidValue naming ``field``."""
    if time.tzinfo is None:
        raise InvalidValue.of(field, "needs a time zone, such as Z")
    milliseconds = -((EPOCH - time) // MILLISECOND)
    if not 1 <= milliseconds <= MILLISECONDS_MAX:
        raise InvalidValue.of(field, "is out of range")
    return milliseconds


def parse_message_id(text: str, field: str) -> MessageId:
    """Accept a message id from outside; raises InvalidValue naming ``field``."""
    lowered = text.lower()
    if _UUID.fullmatch(lowered) is None:
        raise InvalidValue.of(field, "is not a message id")
    return MessageId(lowered)


def check_id(text: str, field: str) -> str:
    """Accept an id chosen by a caller; raises InvalidValue naming ``field`` and the limit."""
    size = len(text.encode())
    if not 1 <= size <= ID_BYTES_MAX:
        raise InvalidValue.of(field, f"must be 1 to {ID_BYTES_MAX} bytes of UTF-8, is {size}")
    if _CONTROL.search(text):
        raise InvalidValue.of(field, "must not contain control characters")
    return text
