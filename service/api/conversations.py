"""The two-line interface, and chat on a session."""

from typing import Any

from litestar import Controller, Response, delete, get, post
from litestar.params import FromPath, FromQuery, JSONBody

from service.api.bodies import ChatBody, ChatFields, TwoLineChatBody
from service.api.documentation import CHAT_PROBLEMS, WRITE_PROBLEMS, problems
from service.api.middleware import TURN
from service.api.parameters import Consistency, Key
from service.api.requests import once, session_ref
from service.api.use_cases import Injected, UseCases
from service.api.views import HistoryMessageView, HistoryView, TurnView, view_turn
from service.core.chat_request import ChatRequest
from service.core.recording import check_session
from service.domain.errors import SessionNotFound
from service.domain.ids import check_id
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
    ) -> Response[TurnView]:
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
    ) -> Response[TurnView]:
        """Makes the session if needed. One turn at a time: beside a running one the answer is 409.

        When the model fails, the message stays, and the same key runs the turn again without
        saying it twice.
        """
        ref = session_ref(session_id)
        return await answer(use_cases, ref, data, data.user_id, idempotency_key)


async def answer(
    use_cases: UseCases, ref: SessionRef, data: ChatFields, user_id: str | None, key: str | None
) -> Response[TurnView]:
    fields: dict[str, Any] = {
        "message": data.message,
        "user_id": user_id,
        "model": data.model,
        "instructions": data.instructions,
        "temperature": data.temperature,
        "max_output_tokens": data.max_output_tokens,
        "context": data.context.options() if data.context else None,
        "durability": data.durability,
    }
    # One operation on both routes, so the fingerprint is over what they have in common.
    request = ChatRequest(ref=ref, once=once(key, "chat", fields), **fields)
    answered = await use_cases.chat.answer(request)
    headers = {"Idempotency-Replayed": "true"} if answered.replayed else {}
    return Response(view_turn(answered.turn), headers=headers)
