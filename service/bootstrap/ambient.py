"""The clock, the observers and the tracer of a real process."""

import time

from opentelemetry import trace

from service import __version__
from service.domain.observations import Observation
from service.ports import Observer


class SystemClock:
    def milliseconds(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        return time.monotonic()


def process_tracer() -> trace.Tracer:
    """Of the SDK that the process was started with; it records nothing where there is none."""
    return trace.get_tracer("chat_memory", __version__)


class Observers:
    """Observer that tells several."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def observe(self, what: Observation) -> None:
        for observer in self._observers:
            observer.observe(what)
