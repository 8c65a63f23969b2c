"""Who of this process is told that a turn may be to end."""

from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Final

EARLY_MAX: Final = 1000
"""Stops kept of turns that are not followed yet: those that begin at this moment."""


class TurnStops:
    """Stops, for whoever hears of them to tell the turns of this process."""

    def __init__(self, *, listening: bool) -> None:
        self._listening = listening
        self._looks: dict[str, Callable[[], None]] = {}
        self._early: deque[str] = deque(maxlen=EARLY_MAX)
        self._changes = 0

    @property
    def listening(self) -> bool:
        return self._listening

    @property
    def changes(self) -> int:
        return self._changes

    @contextmanager
    def told(self, lease_token: str, look: Callable[[], None], *, since: int) -> Generator[None]:
        self._looks[lease_token] = look
        if lease_token in self._early or since != self._changes:
            look()
        try:
            yield
        finally:
            del self._looks[lease_token]

    def tell(self, lease_token: str) -> None:
        """Have a turn look. One that is not followed yet is told as soon as it is."""
        look = self._looks.get(lease_token)
        if look is None:
            self._early.append(lease_token)
        else:
            look()

    def listen(self, *, listening: bool) -> None:
        """From now on stops are heard, or are not: all turns look, for one may have been missed."""
        self._listening = listening
        self._changes += 1
        for look in tuple(self._looks.values()):
            look()
