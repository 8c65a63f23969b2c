"""Pieces of an answer and where they stand in it, so that a reader can go on where it stopped."""

import re
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from service.domain.errors import InvalidValue
from service.domain.turns import Delta, Turn

_PLACE: Final = re.compile(r"([0-9]{1,9})-([0-9]{1,9})")


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """How much of an answer came before: characters of its text, and parts of its tool calls."""

    characters: int = 0
    parts: int = 0

    def __str__(self) -> str:
        return f"{self.characters}-{self.parts}"

    def after(self, delta: Delta) -> "Place":
        return Place(
            characters=self.characters + len(delta.text),
            parts=self.parts + len(delta.tool_calls or ()),
        )


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of an answer; ``place`` is where the next one begins."""

    place: Place
    delta: Delta


def parse_place(text: str, field: str) -> Place:
    """Raises InvalidValue."""
    found = _PLACE.fullmatch(text)
    if found is None:
        raise InvalidValue.of(field, "is not the id of an event of a turn")
    return Place(characters=int(found[1]), parts=int(found[2]))


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
    message = turn.message
    content = message.content if message and isinstance(message.content, str) else ""
    calls = message.tool_calls if message and not wanted.parts else None
    deltas = [Delta(text=content, tool_calls=calls)]
    return list(told_after(wanted, Place(), deltas))
