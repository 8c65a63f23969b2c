"""Counts of what was said."""

from litestar import Controller, get
from litestar.params import FromQuery

from service.api.documentation import problems
from service.api.parameters import FromTime, ToTime
from service.api.requests import time_of_query
from service.api.use_cases import Injected
from service.api.views import StatsView
from service.domain.sessions import DEFAULT_TENANT
from service.domain.statistics import By


class Stats(Controller):
    """What was said and what it cost."""

    tags = ["Statistics"]  # noqa: RUF012  # Litestar's convention.

    @get(
        "/v1/stats",
        operation_id="get_stats",
        summary="Count messages, turns, tokens and active sessions",
        responses=problems("invalid_request", "invalid_value", "archive_unavailable", "overloaded"),
    )
    async def stats(
        self,
        use_cases: Injected,
        user_id: FromQuery[str | None] = None,
        from_time: FromTime = None,
        to_time: ToTime = None,
        by: FromQuery[By] = "day",
    ) -> StatsView:
        """By day, ISO week, user or model, from counters kept while messages are archived.

        Whole days (UTC) that the range touches, at most 366; the last 30 where none is given. By
        user and model the largest come first, and null stands for none: by model, it has all
        messages that are no model's answers. What was counted stays when messages are deleted.
        """
        page = await use_cases.statistics.counted(
            DEFAULT_TENANT,
            by=by,
            user_id=user_id,
            start=time_of_query(from_time, "from"),
            end=time_of_query(to_time, "to"),
        )
        return StatsView(items=list(page.items), truncated=page.truncated)
