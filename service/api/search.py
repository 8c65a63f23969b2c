"""Messages across sessions."""

from litestar import Controller, get
from litestar.params import FromQuery

from service.api.documentation import problems
from service.api.parameters import Cursor, FromTime, Limit, ToTime, WordsParameter
from service.api.requests import time_of_query
from service.api.sessions import PAGE_LIMIT_DEFAULT
from service.api.use_cases import Injected
from service.api.views import FoundView, view_message
from service.core.recall import time_bounds
from service.domain.ids import parse_message_id
from service.domain.messages import Role
from service.domain.sessions import DEFAULT_TENANT
from service.domain.words import parse_query
from service.ports import SearchQuery


class Search(Controller):
    """What was said anywhere."""

    tags = ["Search"]  # noqa: RUF012  # Litestar's convention.

    @get(
        "/v1/messages",
        operation_id="search_messages",
        summary="Search messages across sessions",
        responses=problems("invalid_request", "invalid_value", "archive_unavailable", "overloaded"),
    )
    async def find(
        self,
        use_cases: Injected,
        q: WordsParameter = None,
        user_id: FromQuery[str | None] = None,
        session_id: FromQuery[str | None] = None,
        role: FromQuery[Role | None] = None,
        from_time: FromTime = None,
        to_time: ToTime = None,
        cursor: Cursor = None,
        limit: Limit = PAGE_LIMIT_DEFAULT,
    ) -> FoundView:
        """Newest first, from the archive, which may lag.

        What was accepted up to `archived_through` was looked through: compare it with the id of a
        message (null while Redis is away). Several words mean all of them, in any order; words are
        compared whole, without regard to case and without stemming. In Chinese, Japanese, Korean
        and other scripts without spaces any part of the text is found.
        """
        after, before = time_bounds(time_of_query(from_time, "from"), time_of_query(to_time, "to"))
        if cursor is not None:
            before = min(filter(None, (before, parse_message_id(cursor, "cursor"))))
        page = await use_cases.searching.find(
            SearchQuery(
                tenant=DEFAULT_TENANT,
                limit=limit,
                words=None if q is None else parse_query(q, "q"),
                user_id=user_id,
                session_id=session_id,
                role=role,
                after=after,
                before=before,
            )
        )
        return FoundView(
            items=[view_message(one.message, one.session_id) for one in page.items],
            next_cursor=page.next_cursor,
            archived_through=page.archived_through,
        )
