"""Pieces of an answer and where they stand in it, so that a reader can go on where it stopped."""

import re
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from service.domain.errors import InvalidValue
from service.domain.turns import Delta, Turn

PLACE_MAX: Final = 999_999_999
"""Behind every answer."""
_PLACE: Final = re.compile(r"([0-9a-f]{0,32})[.](?:([0-9]{1,9})-([0-9]{1,9})|end)")


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """How much of an answer came before: characters of its text, and parts of its tool calls.

    A turn that is run again says something else: a place is of one attempt.
    """

    attempt: str = ""
    characters: int = 0
    parts: int = 0

    def __str__(self) -> str:
        return f"{self.attempt}.{self.characters}-{self.parts}"

    def after(self, delta: Delta) -> "Place":
        return Place(
            attempt=self.attempt,
            characters=self.characters + len(delta.text),
            parts=self.parts + len(delta.tool_calls or ()),
        )

    def is_reached_by(self, other: "Place") -> bool:
        """Whether nothing is missing between another place and this one."""
        return self.characters <= other.characters and self.parts <= other.parts

    def of(self, attempt: str) -> "Place":
        """This place, or the beginning where it is of another attempt."""
        return self if self.attempt == attempt else Place(attempt=attempt)


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of an answer; ``place`` is where the next one begins."""

    place: Place
    delta: Delta


def parse_place(text: str, field: str) -> Place:
    """Raises InvalidValue."""
    found = _PLACE.fullmatch(text)
    if found is None:
        raise InvalidValue.of(field, "is not the id of an event of a turn")
    if found[2] is None:
        return Place(attempt=found[1], characters=PLACE_MAX, parts=PLACE_MAX)
    return Place(attempt=found[1], characters=int(found[2]), parts=int(found[3]))


def told_after(wanted: Place, start: Place, deltas: Iterable[Delta]) -> Iterator[Told]:
    """What of the pieces, the first of which begins at ``start``, comes after a place."""
    for delta in deltas:
        end = start.after(delta)
        text = delta.text[max(0, wanted.characters - start.characters) :]
        parts = (delta.tool_calls or [])[max(0, wanted.parts - start.parts) :]
        if text or parts:
            yield Told(place=end, delta=Delta(text=text, tool_calls=parts or None))
        start = end


def joined(deltas: Iterable[Delta]) -> Delta:
    """The pieces as one."""
    deltas = list(deltas)
    parts = [part for delta in deltas for part in delta.tool_calls or ()]
    return Delta(text="".join(delta.text for delta in deltas), tool_calls=parts or None)


def rest_of(turn: Turn, wanted: Place) -> list[Told]:
    """What of an ended turn's answer comes after a place.

    Its tool calls are whole by now: who has seen a part of them finds them in the turn itself.
    """
    wanted, message = wanted.of(turn.attempt), turn.message
    content = message.content if message and isinstance(message.content, str) else ""
    calls = message.tool_calls if message and not wanted.parts else None
    deltas = [Delta(text=content, tool_calls=calls)]
    return list(told_after(wanted, Place(attempt=turn.attempt), deltas))
