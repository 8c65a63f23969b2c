"""Making a session cold whose archive changed by itself."""

from typing import Final

from service.adapters.redis.client import RedisDoor, Script
from service.adapters.redis.replies import SessionArguments
from service.domain.ids import MessageId
from service.domain.sessions import SessionRef
from service.ports import HotLook

LOOK: Final = Script("look", of_session=True)
HEAL: Final = Script("heal", of_session=True)
RESERVE: Final = Script("reserve", of_session=True)


class RedisHealing:
    """HotHealing in Redis. Repeating it changes nothing but the epoch."""

    def __init__(self, door: RedisDoor, arguments: SessionArguments) -> None:
        self._door = door
        self._arguments = arguments

    async def look(self, ref: SessionRef) -> HotLook:
        keys = self._arguments.keys.session(ref).listed()
        now, state = await self._door.run(LOOK, keys, self._arguments.shared(ref))
        return HotLook(state=self._arguments.state(state), now_milliseconds=now)

    async def heal(self, ref: SessionRef, *, settled: MessageId) -> None:
        keys = self._arguments.keys.session(ref).listed()
        await self._door.run(HEAL, keys, [*self._arguments.shared(ref), settled, ""])

    async def reserve(
        self, ref: SessionRef, user_id: str | None, *, settled: MessageId, seconds: float
    ) -> bool:
        keys = self._arguments.keys.session(ref).listed()
        words = [*self._arguments.shared(ref), user_id or "", round(seconds * 1000), settled]
        status, *_ = await self._door.run(RESERVE, keys, words)
        return status == b"reserved"
