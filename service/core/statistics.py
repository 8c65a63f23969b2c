"""Statistics: counts of what is archived."""

from datetime import UTC, date, datetime, timedelta
from typing import Final

import msgspec

from service.domain.errors import InvalidValue
from service.domain.ids import check_id, milliseconds_of, time_of
from service.domain.statistics import ITEMS_MAX, RANGE_DAYS_DEFAULT, RANGE_DAYS_MAX, By, Item
from service.ports import Clock, Statistics, StatisticsQuery

DAY: Final = timedelta(days=1)


class StatisticsPage(msgspec.Struct, frozen=True, kw_only=True):
    items: tuple[Item, ...]
    truncated: bool
    """Whether there were more than ITEMS_MAX."""


class UserStatistics:
    """Reads the counters."""

    def __init__(self, statistics: Statistics | None, *, clock: Clock) -> None:
        self._statistics = statistics
        self._clock = clock

    async def counted(
        self,
        tenant: str,
        *,
        by: By,
        user_id: str | None,
        start: datetime | None,
        end: datetime | None,
    ) -> StatisticsPage:
        """Whole days (UTC) that the range touches; the last 30 where none is given.

        Raises InvalidValue, also where the store has no archive.
        """
        if user_id is not None:
            check_id(user_id, "user_id")
        first, after = self._days(start, end)
        query = StatisticsQuery(tenant=tenant, by=by, user_id=user_id, first=first, end=after)
        if self._statistics is None:
            raise InvalidValue.of("stats", "this store has no archive to count")
        items = await self._statistics.items(query)
        return StatisticsPage(items=tuple(items[:ITEMS_MAX]), truncated=len(items) > ITEMS_MAX)

    def _days(self, start: datetime | None, end: datetime | None) -> tuple[date, date]:
        """First day and the day after the last one."""
        for time, field in ((start, "from"), (end, "to")):
            if time is not None:
                milliseconds_of(time, field)
        if end is None:
            after = time_of(self._clock.milliseconds()).date() + DAY
        else:
            # The end is exclusive: at midnight its day is not touched.
            after = _day_of(end - timedelta(microseconds=1), "to") + DAY
        first = after - RANGE_DAYS_DEFAULT * DAY if start is None else _day_of(start, "from")
        if first >= after or (start is not None and end is not None and start >= end):
            raise InvalidValue.of("to", "must be later than from")
        if (after - first).days > RANGE_DAYS_MAX:
            raise InvalidValue.of("from", f"must be at most {RANGE_DAYS_MAX} days before to")
        return first, after


def _day_of(time: datetime, field: str) -> date:
    """The day (UTC); raises InvalidValue for the last one that a date can name."""
    try:
        day = time.astimezone(UTC).date()
    except OverflowError as error:
        raise InvalidValue.of(field, "is out of range") from error
    if day == date.max:
        raise InvalidValue.of(field, "is out of range")
    return day
