"""Pieces of running answers in Redis, for readers in other processes."""

from typing import Final

import msgspec

from service.adapters.redis.client import RedisDoor, Script
from service.adapters.redis.replies import SessionArguments
from service.domain.deltas import Place
from service.domain.ids import TurnId
from service.domain.sessions import SessionRef
from service.domain.turns import Delta
from service.ports import LeaseState, Piece

PUBLISH: Final = Script("publish", of_session=True)
LIFETIME_MILLISECONDS: Final = 60_000
"""Of the pieces of a turn whose process died, after the last of them."""
READ_MAX: Final = 1000
"""Pieces of one read: a minute of them."""


class _Stored(msgspec.Struct, frozen=True):
    start: Place
    delta: Delta


class RedisPieces:
    """Pieces in a stream of the session's shard."""

    def __init__(self, door: RedisDoor, arguments: SessionArguments) -> None:
        self._door = door
        self._arguments = arguments
        self._decoder = msgspec.json.Decoder(_Stored)

    async def publish(
        self, ref: SessionRef, turn_id: TurnId, lease_token: str, start: Place, delta: Delta
    ) -> LeaseState:
        names = self._arguments.keys
        keys = [*names.session(ref).listed(), names.pieces(ref, turn_id)]
        text = msgspec.json.encode(_Stored(start, delta))
        words = [*self._arguments.shared(ref), lease_token, text, LIFETIME_MILLISECONDS]
        [status] = await self._door.run(PUBLISH, keys, words)
        match status:
            case b"held":
                return "held"
            case b"cancelled":
                return "cancelled"
            case _:
                return "lost"

    async def read(self, ref: SessionRef, turn_id: TurnId, after: str) -> list[Piece]:
        key = self._arguments.keys.pieces(ref, turn_id)
        start = f"({after}" if after else "-"
        rows = await self._door.command("XRANGE", key, start, "+", "COUNT", READ_MAX)
        pieces: list[Piece] = []
        for place, (_, text) in rows:
            stored = self._decoder.decode(text)
            pieces.append(Piece(mark=place.decode(), start=stored.start, delta=stored.delta))
        return pieces
