"""Dropping what is kept no longer from Redis."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

from service.adapters.redis.client import RedisDoor, Script
from service.adapters.redis.replies import SessionArguments
from service.domain.ids import MessageId, random_bits
from service.domain.sessions import SessionRef
from service.ports import Cut

T = TypeVar("T")
R = TypeVar("R")

RETAIN: Final = Script("retain", of_session=True)
END_IDLE: Final = Script("end_idle", of_session=True)

SCRIPTS_AT_ONCE: Final = 8


class RedisRetention:
    """HotRetention in Redis."""

    def __init__(self, door: RedisDoor, arguments: SessionArguments) -> None:
        self._door = door
        self._arguments = arguments

    async def cut(self, cuts: Sequence[Cut]) -> None:
        heads = [self._arguments.keys.session(cut.ref).head for cut in cuts]
        hot = await self._door.together([("EXISTS", head) for head in heads])
        there = [cut for cut, exists in zip(cuts, hot, strict=True) if exists]
        await _each(self._cut, there)

    async def end(self, refs: Sequence[SessionRef], *, before: MessageId) -> int:
        async def end(ref: SessionRef) -> bool:
            return await self._end(ref, before)

        return sum(await _each(end, refs))

    async def _cut(self, cut: Cut) -> None:
        keys = self._arguments.keys.session(cut.ref).listed()
        await self._door.run(RETAIN, keys, [*self._arguments.shared(cut.ref), cut.through])

    async def _end(self, ref: SessionRef, before: MessageId) -> bool:
        names = self._arguments.keys
        once = names.once(ref, "op", secrets.token_hex(16))
        keys = [*names.session(ref).listed(), once]
        words = [*self._arguments.shared(ref), before, random_bits()]
        [status] = await self._door.run(END_IDLE, keys, words)
        match status:
            case b"done":
                return True
            case b"active":
                return False
            case _:
                raise self._arguments.refusal(status)


async def _each(work: Callable[[T], Awaitable[R]], items: Sequence[T]) -> list[R]:
    """Some at once; the first error after the others of its group."""
    results: list[R] = []
    for start in range(0, len(items), SCRIPTS_AT_ONCE):
        results += await asyncio.gather(*map(work, items[start : start + SCRIPTS_AT_ONCE]))
    return results
