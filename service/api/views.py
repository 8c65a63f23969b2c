"""Response bodies, and how they are made from values of the domain."""

from datetime import datetime
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from service.api.problems import STATUS_OF, problem_type
from service.core.recall import ShownContext
from service.domain.context import ContextOptions, ContextTokens, LeftOutReason, Strategy
from service.domain.ids import MessageId, TurnId
from service.domain.messages import Message, Role, Status
from service.domain.sessions import Session
from service.domain.statistics import Item
from service.domain.turns import Turn, TurnContext, TurnError, TurnState, Usage
from service.ports import Durability


class MessageView(msgspec.Struct, frozen=True, kw_only=True):
    id: MessageId
    session_id: str
    turn_id: TurnId | None
    role: Role
    content: str | list[dict[str, Any]] | None
    name: str | None
    tool_calls: list[dict[str, Any]] | None
    tool_call_id: str | None
    metadata: dict[str, Any] | None
    status: Status | None
    token_count: int | None
    created_at: datetime


class HistoryMessageView(msgspec.Struct, frozen=True, kw_only=True):
    id: MessageId
    role: Role
    content: str | list[dict[str, Any]] | None
    created_at: datetime


class HistoryView(msgspec.Struct, frozen=True, kw_only=True):
    user_id: str | None
    messages: list[HistoryMessageView]
    ttl: int | None
    """Seconds left in Redis; null where the session is not there."""
    next_cursor: str | None


class MessagesView(msgspec.Struct, frozen=True, kw_only=True):
    items: list[MessageView]
    next_cursor: str | None


class StatsView(msgspec.Struct, frozen=True, kw_only=True):
    items: list[Item]
    truncated: bool
    """Whether there were more than 1,000 items; the largest are shown."""


class FoundView(msgspec.Struct, frozen=True, kw_only=True):
    items: list[MessageView]
    next_cursor: MessageId | None
    archived_through: MessageId | None
    """What was accepted up to it was looked through; null where nobody knows."""


class AppendedMessageView(msgspec.Struct, frozen=True, kw_only=True):
    id: MessageId
    created_at: datetime


class AppendedView(msgspec.Struct, frozen=True, kw_only=True):
    messages: list[AppendedMessageView]
    durability: Durability


class SessionView(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    user_id: str | None
    metadata: dict[str, Any] | None
    context: ContextOptions | None
    ttl_seconds: int | None
    created_at: datetime
    updated_at: datetime
    message_count: int
    last_id: MessageId | None
    archived_through: MessageId | None
    ttl: int | None


class SessionsView(msgspec.Struct, frozen=True, kw_only=True):
    items: list[SessionView]
    next_cursor: str | None


class LeftOutView(msgspec.Struct, frozen=True, kw_only=True):
    count: int
    reason: LeftOutReason | None
    """Beyond the window, over the budget (tokens), said by the summary, or half of a tool call."""


class SummaryView(msgspec.Struct, frozen=True, kw_only=True):
    """What stands for the messages from `from_id` to `through_id`; they are all still there."""

    text: str
    from_id: MessageId
    through_id: MessageId
    model: str


class ContextView(msgspec.Struct, frozen=True, kw_only=True):
    strategy: Strategy
    summary: SummaryView | None
    messages: list[MessageView]
    tokens: ContextTokens
    left_out: LeftOutView
    tokenizer: str
    """The vocabulary of the counts."""
    tokenizer_assumed: bool
    """True where the model is unknown and the default vocabulary stands in."""


class TurnContextView(msgspec.Struct, frozen=True, kw_only=True):
    strategy: Strategy
    messages: int
    tokens: int
    """Of the whole input, as counted here before the model was asked."""


class TurnErrorView(msgspec.Struct, frozen=True, kw_only=True):
    """A problem, without the request that it would be the answer to."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    retryable: bool


class TurnView(msgspec.Struct, frozen=True, kw_only=True):
    turn_id: TurnId
    session_id: str
    state: TurnState
    response: str | None
    """The answer's text."""
    user_message_id: MessageId
    message: MessageView | None
    usage: Usage
    model: str | None
    """Null while it runs, and where no model answered."""
    context: TurnContextView | None
    started_at: datetime
    finished_at: datetime | None
    tool_calls: list[dict[str, Any]] | UnsetType = UNSET
    error: TurnErrorView | UnsetType = UNSET
    """Why it failed, broke off or was interrupted."""


def view_message(message: Message, session_id: str) -> MessageView:
    return MessageView(
        id=message.id,
        session_id=session_id,
        turn_id=message.turn_id,
        role=message.role,
        content=message.content,
        name=message.name,
        tool_calls=message.tool_calls,
        tool_call_id=message.tool_call_id,
        metadata=message.metadata,
        status=message.status,
        token_count=message.token_count,
        created_at=message.created_at,
    )


def view_context(context: ShownContext, session_id: str) -> ContextView:
    shown = context.shown
    summary = shown.summary
    return ContextView(
        strategy=context.strategy,
        summary=SummaryView(**msgspec.structs.asdict(summary)) if summary else None,
        messages=[view_message(message, session_id) for message in shown.messages],
        tokens=shown.tokens,
        left_out=LeftOutView(count=context.left_out, reason=context.reason),
        tokenizer=shown.tokenizer,
        tokenizer_assumed=not shown.tokenizer_known,
    )


def view_session(session: Session, updated_at: datetime) -> SessionView:
    return SessionView(
        id=session.id,
        user_id=session.user_id,
        metadata=session.document.metadata,
        context=session.document.context,
        ttl_seconds=session.document.ttl_seconds,
        created_at=session.created_at,
        updated_at=updated_at,
        message_count=session.message_count,
        last_id=session.last_id,
        archived_through=session.archived_through,
        ttl=session.ttl,
    )


def view_turn(turn: Turn) -> TurnView:
    message = turn.message
    content = message.content if message else None
    tool_calls = message.tool_calls if message else None
    return TurnView(
        turn_id=turn.turn_id,
        session_id=turn.session_id,
        state=turn.state,
        response=content if isinstance(content, str) else None,
        user_message_id=turn.user_message_id,
        message=view_message(message, turn.session_id) if message else None,
        usage=turn.usage,
        model=turn.model,
        context=_view_turn_context(turn.context),
        started_at=turn.started_at,
        finished_at=turn.finished_at,
        tool_calls=tool_calls or UNSET,
        error=_view_turn_error(turn.error) if turn.error else UNSET,
    )


def _view_turn_context(context: TurnContext | None) -> TurnContextView | None:
    if context is None:
        return None
    return TurnContextView(
        strategy=context.strategy, messages=context.messages, tokens=context.tokens
    )


def _view_turn_error(error: TurnError) -> TurnErrorView:
    return TurnErrorView(
        type=problem_type(error.code),
        title=error.title,
        status=STATUS_OF[error.code],
        detail=error.detail,
        code=error.code,
        retryable=error.retryable,
    )
