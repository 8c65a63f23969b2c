"""Serving several applications in one process and one event loop, with a clean end."""

import asyncio
import signal
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, Final

import msgspec
import structlog
import uvicorn

from service.api.protocol import BoundedHttp

BACKLOG_CONNECTIONS: Final = 2048
KEEP_ALIVE_SECONDS: Final = 30
LAST_GRACE_SECONDS: Final = 1

log = structlog.stdlib.get_logger("chat_memory")


class Listener(msgspec.Struct, frozen=True, kw_only=True):
    app: Any
    host: str
    port: int


class _Server(uvicorn.Server):
    """uvicorn's server, whose signals are handled for all of them at one place."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ended = asyncio.Event()

    def install_signal_handlers(self) -> None:
        """Left to ServiceServer."""

    def cut_off(self) -> None:
        """End what is in flight; each is told so, and its connection closes."""
        for task in list(self.server_state.tasks):
            task.cancel()

    async def run_quietly(self) -> None:
        # Server.serve would take the signals; the work is in _serve.
        try:
            await self._serve()
        finally:
            self.ended.set()


class ServiceServer:
    """Serves until a signal, then drains.

    The first SIGTERM or SIGINT calls ``drain`` at once, so that readiness says no, and lets what is
    in flight finish within the grace time. The second one ends at once. The last listener, the one
    of the operations, is open until the others have ended: draining can be watched.
    """

    def __init__(
        self, listeners: Sequence[Listener], *, drain: Callable[[], None], grace_seconds: float
    ) -> None:
        *others, last = listeners
        graces = [*(grace_seconds for _ in others), LAST_GRACE_SECONDS if others else grace_seconds]
        self._servers = [
            _Server(_config(listener, grace))
            for listener, grace in zip([*others, last], graces, strict=True)
        ]
        self._drain = drain
        self._signals = 0

    @property
    def ports(self) -> list[int]:
        """The ports that are listened on, once it serves."""
        return [
            server.servers[0].sockets[0].getsockname()[1]
            for server in self._servers
            if server.started
        ]

    async def serve(self, *, started: Callable[[], None] = lambda: None) -> None:
        """Serve until a signal or ``stop``. Raises SystemExit when a port cannot be had."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._handle, number, None)
        try:
            async with asyncio.TaskGroup() as group:
                for server in self._servers:
                    group.create_task(server.run_quietly())
                group.create_task(self._announce(started))
                group.create_task(self._end_the_last())
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def stop(self) -> None:
        self._drain()
        for server in self._servers[:-1] or self._servers:
            server.should_exit = True

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self._signals += 1
        log.info("signal", name=signal.Signals(number).name, count=self._signals)
        if self._signals > 1:
            for server in self._servers:
                server.should_exit = server.force_exit = True
                server.cut_off()
        self.stop()

    async def _end_the_last(self) -> None:
        *others, last = self._servers
        for server in others or [last]:
            await server.ended.wait()
        last.should_exit = True

    async def _announce(self, started: Callable[[], None]) -> None:
        while not all(server.started for server in self._servers):  # a flag only
            if any(server.should_exit for server in self._servers):
                return
            await asyncio.sleep(0.01)
        started()


def _config(listener: Listener, grace_seconds: float) -> uvicorn.Config:
    return uvicorn.Config(
        listener.app,
        host=listener.host,
        port=listener.port,
        http=BoundedHttp,
        interface="asgi3",
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        backlog=BACKLOG_CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, round(grace_seconds)),
    )
