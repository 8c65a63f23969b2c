"""Whether Redis works for this process."""

from service.adapters.redis.client import RedisDoor
from service.adapters.redis.layout import LayoutMismatch, RedisLayout
from service.domain.errors import HotUnavailable


class RedisProbe:
    """Probe of the hot memory, its layout included."""

    name = "redis"

    def __init__(self, door: RedisDoor, layout: RedisLayout) -> None:
        self._door = door
        self._layout = layout

    async def problem(self) -> str | None:
        try:
            await self._layout.verify()
            await self._door.command("PING")
        except (HotUnavailable, LayoutMismatch) as error:
            return error.detail
        return None
