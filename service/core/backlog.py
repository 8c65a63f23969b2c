"""Measuring the journal, for whoever watches over it."""

from service.core.background import Looper
from service.domain.observations import BacklogSeen
from service.ports import Journal, Observer


class BacklogWatch:
    """Component that measures the journal of all shards."""

    def __init__(
        self, journal: Journal, *, shards: int, pause_seconds: float, observer: Observer
    ) -> None:
        self._journal = journal
        self._shards = range(shards)
        self._observer = observer
        self._looper = Looper(
            "backlog-watch", self._look, pause_seconds=pause_seconds, observer=observer
        )

    async def start(self) -> None:
        await self._looper.start()

    async def stop(self) -> None:
        await self._looper.stop()

    async def _look(self) -> None:
        shards = await self._journal.backlog(self._shards)
        self._observer.observe(BacklogSeen(shards=tuple(shards)))
