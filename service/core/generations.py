"""The turns that run in one process."""

import asyncio

from service.core.background import ended
from service.core.generating import Generating, Generation
from service.core.running_turn import RunningTurn
from service.domain.errors import Draining


class Generations:
    """The turns that run in this process; they end with it, not with whoever asked for them."""

    def __init__(self, generating: Generating) -> None:
        self._generating = generating
        self._running: dict[str, Generation] = {}
        self._all: set[Generation] = set()
        self._stopping = False

    def check_open(self) -> None:
        """Before a turn begins. Raises Draining once this process stops."""
        if self._stopping:
            raise Draining("The service is shutting down.")

    def start(self, running: RunningTurn, *, streams: bool) -> Generation:
        generation = Generation(self._generating, running, streams=streams)
        self._running[running.turn_id] = generation
        self._all.add(generation)
        generation.task.add_done_callback(lambda _: self._forget(generation))
        return generation

    def of(self, turn_id: str) -> Generation | None:
        """A turn that runs here, to be followed without a store."""
        return self._running.get(turn_id)

    async def stop(self, *, within_seconds: float = 0) -> None:
        """Let what runs come to its end within the time; the rest is interrupted."""
        if self._all and within_seconds:
            await asyncio.wait([one.task for one in self._all], timeout=within_seconds)
        self._stopping = True
        while self._all:
            await asyncio.gather(*(ended(one.task) for one in self._all))

    def _forget(self, generation: Generation) -> None:
        self._all.discard(generation)
        if self._running.get(generation.running.turn_id) is generation:
            del self._running[generation.running.turn_id]
