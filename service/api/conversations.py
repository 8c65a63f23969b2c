"""The two-line interface, and chat on a session."""

from typing import Any

from litestar import Controller, Response, delete, get, post
from litestar.params import FromPath, FromQuery, JSONBody
from litestar.response import Stream

from service.api.bodies import ChatBody, ChatFields, ToolResultsBody, TwoLineChatBody
from service.api.documentation import CHAT_PROBLEMS, READ_PROBLEMS, WRITE_PROBLEMS, problems
from service.api.events import MEDIA_TYPE, event_stream, place_of
from service.api.middleware import STREAM, TURN
from service.api.parameters import Consistency, Key, LastEventId
from service.api.requests import fingerprint_of, once, path_id, session_ref
from service.api.use_cases import Injected, UseCases
from service.api.views import HistoryMessageView, HistoryView, TurnView, view_turn
from service.core.chat_request import ChatRequest
from service.core.recording import check_session
from service.core.resuming import Results, ToolResult
from service.domain.errors import SessionNotFound
from service.domain.ids import TurnId, check_id
from service.domain.sessions import DEFAULT_TENANT, SessionRef

HISTORY_LIMIT_DEFAULT = 200


class TwoLines(Controller):
    """A remembered conversation in two lines of code."""

    tags = ["Two-line interface"]  # noqa: RUF012  # Litestar's convention.

    @post(
        "/chat",
        operation_id="chat",
        summary="Say something and be answered",
        status_code=200,
        opt=TURN,
        responses=problems(*CHAT_PROBLEMS),
    )
    async def chat(
        self, use_cases: Injected, data: JSONBody[TwoLineChatBody], idempotency_key: Key = None
    ) -> Response[TurnView] | Stream:
        """The model is shown the conversation so far; both sides are remembered."""
        check_id(data.user_id, "user_id")
        session_id = data.session_id if data.session_id is not None else data.user_id
        ref = SessionRef(DEFAULT_TENANT, session_id)
        return await answer(use_cases, ref, data, data.user_id, idempotency_key)

    @get(
        "/history/{session_id:str}",
        operation_id="get_history",
        summary="Read what was said",
        responses=problems("invalid_request", "invalid_value", *WRITE_PROBLEMS),
    )
    async def history(
        self,
        use_cases: Injected,
        session_id: FromPath[str],
        limit: FromQuery[int] = HISTORY_LIMIT_DEFAULT,
        consistency: Consistency = "session",
    ) -> HistoryView:
        """The newest messages of the session with this id, in order.

        An unknown id is an empty history: nothing was said yet.
        """
        history = await use_cases.recall.history(
            session_ref(session_id), limit=limit, archive_only=consistency == "archive"
        )
        return HistoryView(
            user_id=history.user_id,
            messages=[
                HistoryMessageView(
                    id=message.id,
                    role=message.role,
                    content=message.content,
                    created_at=message.created_at,
                )
                for message in history.messages
            ],
            ttl=history.ttl,
            next_cursor=history.next_cursor,
        )

    @delete(
        "/history/{session_id:str}",
        operation_id="clear_history",
        summary="Forget what was said",
        responses=problems("invalid_request", "invalid_value", *WRITE_PROBLEMS),
    )
    async def clear(self, use_cases: Injected, session_id: FromPath[str]) -> None:
        """Forgets all messages; an unknown id is cleared already."""
        ref = session_ref(session_id)
        check_session(ref)
        try:
            await use_cases.recording.clear(ref)
        except SessionNotFound:
            return


class SessionChat(Controller):
    """Turns of a session."""

    tags = ["Chat"]  # noqa: RUF012  # Litestar's convention.

    @post(
        "/v1/sessions/{session_id:str}/chat",
        operation_id="chat_in_session",
        summary="Say something and be answered",
        status_code=200,
        opt=TURN,
        responses=problems(*CHAT_PROBLEMS),
    )
    async def chat(
        self,
        use_cases: Injected,
        session_id: FromPath[str],
        data: JSONBody[ChatBody],
        idempotency_key: Key = None,
    ) -> Response[TurnView] | Stream:
        """Makes the session if needed. One turn at a time: beside a running one the answer is 409.

        When the model fails, the message stays, and the same key runs the turn again without
        saying it twice.
        """
        ref = session_ref(session_id)
        return await answer(use_cases, ref, data, data.user_id, idempotency_key)


class SessionTurns(Controller):
    """A turn by its id, in whichever process it runs."""

    tags = ["Chat"]  # noqa: RUF012  # Litestar's convention.
    path = "/v1/sessions/{session_id:str}/turns/{turn_id:str}"

    @get(
        "/",
        operation_id="get_turn",
        summary="See how a turn stands",
        responses=problems(*READ_PROBLEMS),
    )
    async def look(
        self, use_cases: Injected, session_id: FromPath[str], turn_id: FromPath[str]
    ) -> TurnView:
        """As long as its call is remembered (24 h with an Idempotency-Key, else some minutes)."""
        turn = path_id(turn_id, "turn_id")
        return view_turn(await use_cases.chat.turn(session_ref(session_id), TurnId(turn)))

    @get(
        "/events",
        operation_id="get_turn_events",
        summary="Join a turn's events",
        media_type=MEDIA_TYPE,
        opt=STREAM,
        responses=problems(*READ_PROBLEMS),
    )
    async def events(
        self,
        use_cases: Injected,
        session_id: FromPath[str],
        turn_id: FromPath[str],
        last_event_id: LastEventId = None,
    ) -> Stream:
        """From the beginning, or after the event that `Last-Event-ID` names, in any process.

        What was missed comes first, then what is said as it is said, and last the turn. A turn that
        has ended tells its answer at once; one that does not stream tells it at its end.
        """
        turn = TurnId(path_id(turn_id, "turn_id"))
        after = None if last_event_id is None else place_of(last_event_id)
        streamed = await use_cases.chat.events(session_ref(session_id), turn, after)
        return event_stream(streamed, after=after)

    @post(
        "/cancel",
        operation_id="cancel_turn",
        summary="End a running turn",
        status_code=200,
        responses=problems(*READ_PROBLEMS),
    )
    async def cancel(
        self, use_cases: Injected, session_id: FromPath[str], turn_id: FromPath[str]
    ) -> TurnView:
        """What was said so far is kept, as a message with the status `incomplete`.

        A turn that has ended answers its state.
        """
        turn = path_id(turn_id, "turn_id")
        return view_turn(await use_cases.chat.cancel(session_ref(session_id), TurnId(turn)))

    @post(
        "/tool-results",
        operation_id="give_tool_results",
        summary="Go on with a turn that called tools",
        status_code=200,
        opt=TURN,
        responses=problems(*CHAT_PROBLEMS),
    )
    async def tool_results(
        self,
        use_cases: Injected,
        session_id: FromPath[str],
        turn_id: FromPath[str],
        data: JSONBody[ToolResultsBody],
        idempotency_key: Key = None,
    ) -> Response[TurnView] | Stream:
        """Answers as chat does: the turn goes on as it was asked, under its id.

        All of its calls are answered at once. They are answered once, and only while nothing but
        system and developer messages was said since (else 409 turn_state); after a failure the same
        results run the turn again without being kept twice.
        """
        turn = TurnId(path_id(turn_id, "turn_id"))
        fields = {"turn_id": turn, "results": data.results}
        request = await use_cases.resuming.request(
            Results(
                ref=session_ref(session_id),
                turn_id=turn,
                results=[
                    ToolResult(tool_call_id=one.tool_call_id, content=one.content)
                    for one in data.results
                ],
                fingerprint=fingerprint_of(fields),
                once=once(idempotency_key, "tool-results", fields),
            )
        )
        return await answered(use_cases, request, streams=data.stream)


async def answer(
    use_cases: UseCases, ref: SessionRef, data: ChatFields, user_id: str | None, key: str | None
) -> Response[TurnView] | Stream:
    fields: dict[str, Any] = {
        "message": data.message,
        "user_id": user_id,
        "model": data.model,
        "instructions": data.instructions,
        "temperature": data.temperature,
        "max_output_tokens": data.max_output_tokens,
        "tools": data.tools,
        "tool_choice": data.tool_choice,
        "response_format": data.response_format,
        "context": data.context.options() if data.context else None,
        "durability": data.durability,
        "on_busy": data.on_busy,
    }
    # One operation on both routes, so the fingerprint is over what they have in common; streamed or
    # not, it is the same call.
    given = {name: value for name, value in fields.items() if value is not None}
    request = ChatRequest(ref=ref, once=once(key, "chat", given), **given)
    return await answered(use_cases, request, streams=data.stream)


async def answered(
    use_cases: UseCases, request: ChatRequest, *, streams: bool
) -> Response[TurnView] | Stream:
    if streams:
        streamed = await use_cases.chat.stream(request)
        turn = streamed.turn
        return event_stream(streamed, left=lambda: use_cases.chat.left(turn))
    given = await use_cases.chat.answer(request)
    headers = {"Idempotency-Replayed": "true"} if given.replayed else {}
    return Response(view_turn(given.turn), headers=headers)
