"""Circuit breakers: a model that failed again and again is left alone for a while."""

import math
from typing import Final

from service.domain.errors import ModelUnavailable
from service.domain.observations import BreakerChanged, BreakerState
from service.ports import Clock, Observer

BREAKERS_MAX: Final = 1000
"""Callers may name any model; past it the one that was asked for longest ago is forgotten."""


class Breaker:
    """Closed, open after so many outages in a row, half-open after so many seconds.

    Half open, one call at a time is let through, and its end decides. A call that was let through
    before the state last changed decides nothing any more.
    """

    def __init__(
        self, model: str, *, failures: int, open_seconds: float, clock: Clock, observer: Observer
    ) -> None:
        self._model = model
        self._failures_max = failures
        self._open_seconds = open_seconds
        self._clock = clock
        self._observer = observer
        self._state: BreakerState = "closed"
        self._failures = 0
        self._open_until = 0.0
        self._probing = False
        self.era = 0
        """Counts the changes of state."""

    def admit(self) -> "Permit":
        """Raises ModelUnavailable, with the seconds until it is worth another call."""
        if self._state == "open":
            rest = self._open_until - self._clock.monotonic()
            if rest > 0:
                raise _resting(math.ceil(rest))
            self._become("half_open")
        if self._state == "half_open":
            if self._probing:
                raise _resting(1)
            self._probing = True
        return Permit(self, self.era)

    def began(self) -> None:
        if self._state == "half_open":
            self._become("closed")

    def worked(self) -> None:
        self._failures = 0
        self.began()

    def failed(self) -> None:
        self._failures += 1
        if self._state == "half_open" or self._failures >= self._failures_max:
            self._open_until = self._clock.monotonic() + self._open_seconds
            self._become("open")

    def left(self) -> None:
        self._probing = False

    def _become(self, state: BreakerState) -> None:
        self._state = state
        self._failures = 0
        self._probing = False
        self.era += 1
        self._observer.observe(BreakerChanged(model=self._model, state=state))


class Permit:
    """One call's leave to ask, and what came of it; whoever has it releases it."""

    def __init__(self, breaker: Breaker, era: int) -> None:
        self._breaker = breaker
        self._era = era

    def began(self) -> None:
        """The model has begun to answer: that is proof enough for a probe."""
        if self._holds():
            self._breaker.began()

    def worked(self) -> None:
        if self._holds():
            self._breaker.worked()

    def failed(self) -> None:
        if self._holds():
            self._breaker.failed()

    def release(self) -> None:
        """A probe that proved nothing leaves its place to the next."""
        if self._holds():
            self._breaker.left()

    def _holds(self) -> bool:
        return self._breaker.era == self._era


class Breakers:
    """A breaker for each model's name."""

    def __init__(
        self, *, failures: int, open_seconds: float, clock: Clock, observer: Observer
    ) -> None:
        self._failures = failures
        self._open_seconds = open_seconds
        self._clock = clock
        self._observer = observer
        self._breakers: dict[str, Breaker] = {}

    def admit(self, model: str) -> Permit:
        """Raises ModelUnavailable; then nothing is to be sent."""
        breaker = self._breakers.pop(model, None) or Breaker(
            model,
            failures=self._failures,
            open_seconds=self._open_seconds,
            clock=self._clock,
            observer=self._observer,
        )
        # The order is that of the last use.
        self._breakers[model] = breaker
        if len(self._breakers) > BREAKERS_MAX:
            del self._breakers[next(iter(self._breakers))]
        return breaker.admit()


def _resting(seconds: int) -> ModelUnavailable:
    return ModelUnavailable(
        "The model failed again and again and is left alone for a while.",
        retry_after_seconds=seconds,
    )
