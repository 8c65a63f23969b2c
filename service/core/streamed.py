"""A turn as it is told piece by piece."""

from collections.abc import AsyncGenerator

import msgspec

from service.domain.deltas import Place, Told, rest_of
from service.domain.turns import Turn


class Streamed(msgspec.Struct, frozen=True, kw_only=True):
    """A turn as it is told: how it stands, then what is said, and last of all its end."""

    turn: Turn
    events: AsyncGenerator[Told | Turn]
    replayed: bool = False

    @classmethod
    def of_ended(cls, turn: Turn, place: Place, *, replayed: bool = False) -> "Streamed":
        async def events() -> AsyncGenerator[Told | Turn]:
            for told in rest_of(turn, place):
                yield told
            yield turn

        return cls(turn=turn, events=events(), replayed=replayed)
