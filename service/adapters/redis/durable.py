"""Running a script to the durability that its caller wants."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from service.adapters.redis.client import RedisDoor, Script, Value
from service.domain.errors import DurabilityUnavailable
from service.ports import Wanted


class DurableRuns:
    """Runs scripts that write messages; waits for the disk where that is wanted."""

    def __init__(
        self,
        door: RedisDoor,
        *,
        replicas: int,
        fsync_problem: Callable[[], Awaitable[str | None]],
    ) -> None:
        self._door = door
        self._replicas = replicas
        self._fsync_problem = fsync_problem
        self._can_fsync = False

    async def run(
        self, script: Script, keys: Sequence[str], words: Sequence[Value], wanted: Wanted
    ) -> Any:
        """Raises DurabilityUnavailable before anything is written."""
        if wanted != "fsynced":
            return await self._door.run(script, keys, words)
        await self.check(wanted)
        return await self._door.run_fsynced(script, keys, words, replicas=self._replicas)

    async def check(self, wanted: Wanted) -> None:
        """Raises DurabilityUnavailable where ``wanted`` cannot be had."""
        if wanted != "fsynced" or self._can_fsync:
            return
        problem = await self._fsync_problem()
        if problem is not None:
            raise DurabilityUnavailable(problem)
        self._can_fsync = True
