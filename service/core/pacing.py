"""Pacing: long work in steps, so that others get their turn between them."""

import asyncio


class Pace:
    """Lets others go first whenever so much was done in one go."""

    def __init__(self, step: int) -> None:
        self._step = step
        self._done = 0

    async def spent(self, work: int) -> None:
        """Tell of work that was done, in the units of the step."""
        self._done += work
        if self._done >= self._step:
            self._done = 0
            await asyncio.sleep(0)
