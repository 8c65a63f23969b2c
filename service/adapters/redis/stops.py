"""Hearing that a turn of this process may be to end: one connection that is subscribed."""

import asyncio
import secrets
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Final

from service.adapters.redis.client import HotLimits, pool_of
from service.adapters.redis.keys import STOPS_CHANNELS
from service.core.background import ended, owned_task
from service.core.stops import TurnStops
from service.domain.observations import ComponentFailed
from service.ports import Observer

QUIET_SECONDS: Final = 5.0
"""Without a message for so long, the server is asked whether it is still there."""
HEARD: Final = b"heard"
"""No lease token: what is published by whoever has just subscribed."""
PAUSE_SECONDS_MIN: Final = 0.2
PAUSE_SECONDS_MAX: Final = 5.0
"""Between a lost subscription and the next one; twice as long after each that was refused."""


class RedisStops:
    """Component that tells its ``stops`` what is published to this process.

    ``begin`` writes the channel beside the lease, and the scripts that ask a turn to end or take
    its lease away publish there, in the same step. The channel is this process's own, so that what
    is said of others' turns, or in another database of the same Redis, never comes here.
    """

    def __init__(self, url: str, limits: HotLimits, observer: Observer) -> None:
        self.channel = f"{STOPS_CHANNELS}{secrets.token_hex(16)}"
        self._limits = limits
        self.stops = TurnStops(listening=False)
        self._observer = observer
        # Beside the door's: a pool of one connection must have it for calls. One listens, and one
        # says at its beginning what it is to hear.
        self._pool = pool_of(url, limits, connections=2)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = owned_task(self._listen_on(), name="turn-stops")

    async def stop(self) -> None:
        if self._task is not None:
            await ended(self._task)
            self._task = None
        await self._pool.aclose()

    async def _listen_on(self) -> None:
        pause = 0.0
        while True:
            try:
                await self._listen()
            except Exception as error:  # noqa: BLE001  # It listens again, whatever it meets.
                if self.stops.listening:
                    pause = 0.0
                    self.stops.listen(listening=False)
                # Once per loss: an outage is many failures.
                if not pause:
                    reason = type(error).__name__
                    self._observer.observe(ComponentFailed(component="turn-stops", reason=reason))
            pause = min(max(2 * pause, PAUSE_SECONDS_MIN), PAUSE_SECONDS_MAX)
            await asyncio.sleep(pause)

    async def _listen(self) -> None:
        """Until the connection is lost, which is raised."""
        async with self._connection() as connection:
            async with asyncio.timeout(self._limits.call_seconds):
                await connection.send_command("SUBSCRIBE", self.channel)
                await connection.read_response()
            # Who may subscribe need not be one who may publish, as the scripts do.
            async with self._connection() as other, asyncio.timeout(self._limits.call_seconds):
                await other.send_command("PUBLISH", self.channel, HEARD)
                await other.read_response()
            while True:
                await self._hear(connection)

    async def _hear(self, connection: Any) -> None:
        try:
            async with asyncio.timeout(QUIET_SECONDS):
                reply = await connection.read_response(disconnect_on_error=False)
        except TimeoutError:
            # Half of a cut connection says nothing of its own.
            async with asyncio.timeout(self._limits.call_seconds):
                await connection.send_command("PING", check_health=False)
                reply = await connection.read_response()
        kind, *rest = reply
        if kind != b"message":
            return
        if rest[1] == HEARD:
            self.stops.listen(listening=True)
        else:
            self.stops.tell(rest[1].decode())

    @asynccontextmanager
    async def _connection(self) -> AsyncGenerator[Any]:
        async with asyncio.timeout(self._limits.call_seconds):
            connection = await self._pool.get_connection()  # pyright: ignore[reportUnknownMemberType]  # untyped
        try:
            yield connection
        finally:
            # Subscribed, it is of no use to anybody else.
            await connection.disconnect(nowait=True)
            await self._pool.release(connection)
