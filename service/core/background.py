"""Background work: owned tasks and one shape for every component that loops."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final, Protocol, TypeVar

from service.domain.observations import ComponentFailed, LoopLagSeen
from service.ports import Clock, Observer

T = TypeVar("T")

PAUSE_AFTER_FAILURE_SECONDS: Final = 0.5
CANCEL_AGAIN_SECONDS: Final = 0.5
LAG_PROBE_SECONDS: Final = 0.05


class Component(Protocol):
    """Something with a life: stop is complete, may be repeated, and is allowed before start."""

    async def start(self) -> None: ...
    async def stop(self) -> None: ...


@contextlib.asynccontextmanager
async def running(components: Sequence[Component]) -> AsyncGenerator[None]:
    """Start in order, stop in the opposite one, whatever happens in between."""
    async with contextlib.AsyncExitStack() as stack:
        for component in components:
            stack.push_async_callback(component.stop)
            await component.start()
        yield


def owned_task(work: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
    """The one place where tasks are made; who calls it keeps the task and ends it."""
    return asyncio.create_task(work, name=name)  # noqa: TID251  # This is the runner.


async def ended(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait until it is over, whatever its outcome.

    Cancelled again where something in it swallowed the cancellation.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=CANCEL_AGAIN_SECONDS)
    if not task.cancelled():
        task.exception()


async def unstopped(work: Coroutine[Any, Any, T], *, name: str) -> T:
    """Do work that must not be left half done to its end, whoever cancels the caller meanwhile.

    The work itself is bounded. A cancellation is passed over: the caller has its result.
    """
    task = owned_task(work, name=name)
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([task])
    return task.result()


class LoopLag:
    """Component that measures how late the event loop is."""

    def __init__(self, *, pause_seconds: float, clock: Clock, observer: Observer) -> None:
        self._clock = clock
        self._observer = observer
        self._looper = Looper(
            "loop-lag", self._measure, pause_seconds=pause_seconds, observer=observer
        )

    async def start(self) -> None:
        await self._looper.start()

    async def stop(self) -> None:
        await self._looper.stop()

    async def _measure(self) -> None:
        asked = self._clock.monotonic()
        await asyncio.sleep(LAG_PROBE_SECONDS)
        late = self._clock.monotonic() - asked - LAG_PROBE_SECONDS
        self._observer.observe(LoopLagSeen(seconds=max(0.0, late)))


class Looper:
    """Calls ``round_`` again and again, ``pause_seconds`` after each has ended, until stopped.

    A round that returns True is followed by the next one at once.

    A failed round is observed and tried again after a pause; it never ends the loop. ``stop`` lets
    a running round finish: what it writes is never torn by a shutdown.
    """

    def __init__(
        self,
        name: str,
        round_: Callable[[], Awaitable[bool | None]],
        *,
        pause_seconds: float,
        observer: Observer,
    ) -> None:
        self._name = name
        self._round = round_
        self._pause_seconds = pause_seconds
        self._observer = observer
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._stopping.clear()
        self._task = owned_task(self._loop(), name=self._name)

    async def stop(self) -> None:
        self._stopping.set()
        if self._task is not None:
            await asyncio.wait([self._task])
            self._task = None

    async def _loop(self) -> None:
        while not self._stopping.is_set():
            pause = self._pause_seconds
            try:
                if await self._round():
                    pause = 0.0
            except Exception as error:  # noqa: BLE001  # A loop outlives whatever its round meets.
                self._note(error)
                pause = max(pause, PAUSE_AFTER_FAILURE_SECONDS)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stopping.wait()

    def _note(self, error: Exception) -> None:
        self._observer.observe(ComponentFailed(component=self._name, reason=type(error).__name__))
