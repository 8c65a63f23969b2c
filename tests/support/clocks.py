"""A clock that stands still until a test moves it."""


class HandClock:
    def __init__(self) -> None:
        self._seconds = 1_000.0

    def milliseconds(self) -> int:
        return round(1000 * self._seconds)

    def monotonic(self) -> float:
        return self._seconds

    def pass_seconds(self, seconds: float) -> None:
        self._seconds += seconds
