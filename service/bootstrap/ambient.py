"""The clock and the observers of a real process."""

import time

from service.domain.observations import Observation
from service.ports import Observer


class SystemClock:
    def milliseconds(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        return time.monotonic()


class Observers:
    """Observer that tells several."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def observe(self, what: Observation) -> None:
        for observer in self._observers:
            observer.observe(what)
