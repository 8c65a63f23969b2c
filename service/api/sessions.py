"""Sessions as resources, their messages and their context."""

import hashlib
import uuid
from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec
from litestar import Controller, Response, delete, get, patch, post
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter

from service.api.bodies import AppendBody, SessionBody, SessionPatchBody
from service.api.documentation import CREATE_PROBLEMS, READ_PROBLEMS, WRITE_PROBLEMS, problems
from service.api.parameters import Consistency, Cursor, FromTime, Key, Limit, ToTime
from service.api.problems import misfit
from service.api.requests import once, session_ref, time_of_query
from service.api.use_cases import Injected, UseCases
from service.api.views import (
    AppendedMessageView,
    AppendedView,
    ContextView,
    MessagesView,
    SessionsView,
    SessionView,
    view_context,
    view_message,
    view_session,
)
from service.core.recall import between, check_wait
from service.domain.context import ContextOptions, Strategy
from service.domain.errors import Overloaded, SessionExists
from service.domain.ids import MessageId, id_time, parse_message_id
from service.domain.messages import Role
from service.domain.sessions import DEFAULT_TENANT, Session, SessionRef
from service.ports import Create, Once, PageQuery, SessionQuery

PAGE_LIMIT_DEFAULT = 50
MADE_IDS_MAX = 100
WAIT_SECONDS_DEFAULT = 5.0


class Sessions(Controller):
    """One conversation each."""

    tags = ["Sessions"]  # noqa: RUF012  # Litestar's convention.
    path = "/v1/sessions"

    @post(
        operation_id="create_session",
        summary="Make a session",
        responses=problems("session_exists", "idempotency_key_reused", *CREATE_PROBLEMS),
    )
    async def create(
        self, use_cases: Injected, data: JSONBody[SessionBody], idempotency_key: Key = None
    ) -> Response[SessionView]:
        """Needed only to give it settings: the first append or chat makes a session as well."""
        promise = once(idempotency_key, "create", data)
        session, replayed = await _create(use_cases, data, promise)
        headers = {"Idempotency-Replayed": "true"} if replayed else {}
        return Response(_view(session), headers=headers)

    @get(
        operation_id="list_sessions",
        summary="List sessions",
        responses=problems("invalid_request", "invalid_value", *WRITE_PROBLEMS),
    )
    async def newest(
        self,
        use_cases: Injected,
        user_id: FromQuery[str | None] = None,
        cursor: Cursor = None,
        limit: Limit = PAGE_LIMIT_DEFAULT,
    ) -> SessionsView:
        """Newest activity first; what was just written is there."""
        page = await use_cases.recall.sessions(
            SessionQuery(
                tenant=DEFAULT_TENANT, user_id=user_id, limit=limit, before=_id(cursor, "cursor")
            )
        )
        return SessionsView(
            items=[_view(item) for item in page.items], next_cursor=page.next_before
        )

    @get(
        "/{session_id:str}",
        operation_id="get_session",
        summary="Get a session",
        responses=problems(*READ_PROBLEMS),
    )
    async def one(
        self,
        use_cases: Injected,
        session_id: FromPath[str],
        wait: FromQuery[Literal["archived"] | None] = None,
        timeout_seconds: FromQuery[float] = WAIT_SECONDS_DEFAULT,
    ) -> SessionView:
        """With its counters, flushed or not.

        `wait=archived` answers when `archived_through` is `last_id`, or at the time-out (0 to 15).
        """
        check_wait(timeout_seconds)
        seconds = timeout_seconds if wait else 0
        return _view(await use_cases.recall.session(session_ref(session_id), wait_seconds=seconds))

    @patch(
        "/{session_id:str}",
        operation_id="patch_session",
        summary="Change a session's settings",
        responses=problems("not_found", *CREATE_PROBLEMS),
    )
    async def change(
        self, use_cases: Injected, session_id: FromPath[str], data: JSONBody[SessionPatchBody]
    ) -> SessionView:
        """A merge patch (RFC 7396) of `metadata`, `context` and `ttl_seconds`."""
        try:
            session = await use_cases.recording.patch(session_ref(session_id), data.changes())
        except msgspec.ValidationError as error:
            raise misfit(error) from error
        return _view(session)

    @delete(
        "/{session_id:str}",
        operation_id="delete_session",
        summary="Delete a session and its messages",
        responses=problems(*READ_PROBLEMS),
    )
    async def remove(self, use_cases: Injected, session_id: FromPath[str]) -> None:
        """At once in every answer, and for good in both tiers. A running turn is cancelled."""
        await use_cases.recording.delete(session_ref(session_id))


class Messages(Controller):
    """What is said in a session."""

    tags = ["Messages"]  # noqa: RUF012  # Litestar's convention.
    path = "/v1/sessions/{session_id:str}"

    @post(
        "/messages",
        operation_id="append_messages",
        summary="Append messages",
        responses=problems(
            "not_found", "idempotency_key_reused", "precondition_failed", *CREATE_PROBLEMS
        ),
    )
    async def append(
        self,
        use_cases: Injected,
        session_id: FromPath[str],
        data: JSONBody[AppendBody],
        idempotency_key: Key = None,
    ) -> Response[AppendedView]:
        """All or none, up to 1,000. Makes the session if needed."""
        appended = await use_cases.recording.append(
            session_ref(session_id),
            [message.body() for message in data.messages],
            user_id=data.user_id,
            once=once(idempotency_key, "append", data),
            if_last_id=(
                msgspec.UNSET
                if data.if_last_id is msgspec.UNSET
                else _id(data.if_last_id, "if_last_id")
            ),
            durability=data.durability,
        )
        view = AppendedView(
            messages=[
                AppendedMessageView(id=identity, created_at=id_time(identity))
                for identity in appended.ids
            ],
            durability=appended.durability,
        )
        headers = {"Idempotency-Replayed": "true"} if appended.replayed else {}
        return Response(view, headers=headers)

    @get(
        "/messages",
        operation_id="list_messages",
        summary="Read messages",
        responses=problems(*READ_PROBLEMS),
    )
    async def page(
        self,
        use_cases: Injected,
        session_id: FromPath[str],
        limit: Limit = PAGE_LIMIT_DEFAULT,
        order: FromQuery[Literal["asc", "desc"]] = "asc",
        before: Annotated[str | None, QueryParameter(description="Exclusive message id.")] = None,
        after: Annotated[str | None, QueryParameter(description="Exclusive message id.")] = None,
        role: FromQuery[Role | None] = None,
        from_time: FromTime = None,
        to_time: ToTime = None,
        consistency: Consistency = "session",
    ) -> MessagesView:
        """In the order of acceptance. `next_cursor` goes into `after` (asc) or `before` (desc)."""
        ref = session_ref(session_id)
        query = PageQuery(
            limit=limit,
            descending=order == "desc",
            before=_id(before, "before"),
            after=_id(after, "after"),
            role=role,
            archive_only=consistency == "archive",
        )
        start, end = time_of_query(from_time, "from"), time_of_query(to_time, "to")
        page = await use_cases.recall.page(ref, between(query, start, end))
        return MessagesView(
            items=[view_message(message, ref.session_id) for message in page.items],
            next_cursor=page.next_cursor,
        )

    @delete(
        "/messages",
        operation_id="clear_messages",
        summary="Forget all messages",
        responses=problems(*READ_PROBLEMS),
    )
    async def clear(self, use_cases: Injected, session_id: FromPath[str]) -> None:
        """The session, its owner and settings stay. A running turn is cancelled."""
        await use_cases.recording.clear(session_ref(session_id))

    @get(
        "/context",
        operation_id="get_context",
        summary="See what a model would be shown",
        responses=problems("context_too_large", *READ_PROBLEMS),
    )
    async def context(
        self,
        use_cases: Injected,
        session_id: FromPath[str],
        strategy: FromQuery[Strategy | None] = None,
        last: FromQuery[int | None] = None,
        max_tokens: FromQuery[int | None] = None,
        profile: FromQuery[bool | None] = None,
    ) -> ContextView:
        """By the given strategy, else the session's, else a window of 50.

        Tokens are counted by the vocabulary of the service's model, and what is left out is told.
        """
        ref = session_ref(session_id)
        options = ContextOptions(
            strategy=strategy, last=last, max_tokens=max_tokens, profile=profile
        )
        return view_context(await use_cases.recall.context(ref, options), ref.session_id)


def _view(session: Session) -> SessionView:
    return view_session(session, id_time(session.active_id))


async def _create(
    use_cases: UseCases, data: SessionBody, promise: Once | None
) -> tuple[Session, bool]:
    for made_id in _made_ids(promise):
        command = Create(
            ref=SessionRef(DEFAULT_TENANT, made_id if data.id is None else data.id),
            user_id=data.user_id,
            document=data.document(),
            once=promise,
        )
        try:
            return await use_cases.recording.create(command)
        except SessionExists:
            if data.id is not None:
                raise
    raise Overloaded("No free session id was found for this Idempotency-Key.")


def _made_ids(promise: Once | None) -> Iterator[str]:
    """Ids for a session that was given none.

    Under a key always the same ones, so that a repeated call finds its session. The first is taken
    where the key was used before and is forgotten since: then the next one is a new session's.
    """
    for number in range(MADE_IDS_MAX):
        if promise is None:
            yield str(uuid.uuid4())
        else:
            name = f"{DEFAULT_TENANT}:{number}:{promise.key}".encode()
            yield str(uuid.UUID(bytes=hashlib.sha256(name).digest()[:16], version=5))


def _id(text: str | None, field: str) -> MessageId | None:
    return None if text is None else parse_message_id(text, field)
