"""Request and response bodies. Limits are told in the schema and enforced by the domain (422)."""

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from service.domain.context import WINDOW_LAST_MAX, ContextOptions, Strategy
from service.domain.ids import ID_BYTES_MAX, MessageId, TurnId
from service.domain.messages import BATCH_MESSAGES_MAX, Message, MessageBody, Role, Status
from service.domain.sessions import (
    TTL_SECONDS_MAX,
    TTL_SECONDS_MIN,
    Session,
    SessionDocument,
)
from service.domain.turns import Turn, TurnState, Usage
from service.ports import Durability

Id = Annotated[
    str,
    Meta(
        description="1 to 255 bytes of UTF-8 without control characters.",
        extra_json_schema={"minLength": 1, "maxLength": ID_BYTES_MAX},
    ),
]
Text = Annotated[str, Meta(extra_json_schema={"minLength": 1})]
Metadata = Annotated[dict[str, Any], Meta(description="Free JSON of the caller's, at most 16 KiB.")]


class RequestBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all request bodies: what is not known is refused."""


class ContextBody(RequestBody, frozen=True, kw_only=True):
    """How much of the session the model is shown."""

    strategy: Annotated[
        Strategy | None, Meta(description="All of it (buffer) or the last N messages (window).")
    ] = None
    last: Annotated[
        int | None,
        Meta(
            description="Messages in a window; system and developer messages do not count.",
            extra_json_schema={"minimum": 1, "maximum": WINDOW_LAST_MAX},
        ),
    ] = None

    def options(self) -> ContextOptions:
        return ContextOptions(strategy=self.strategy, last=self.last)


class ChatFields(RequestBody, frozen=True, kw_only=True):
    """What to say, and how to be answered."""

    message: Text
    model: Id | None = None
    instructions: Annotated[
        Text | None, Meta(description="System instructions of this turn; they are not stored.")
    ] = None
    temperature: Annotated[float | None, Meta(extra_json_schema={"minimum": 0, "maximum": 2})] = (
        None
    )
    max_output_tokens: Annotated[int | None, Meta(extra_json_schema={"minimum": 1})] = None
    context: ContextBody | None = None


class ChatBody(ChatFields, frozen=True, kw_only=True):
    """What to say in a session, and how to be answered."""

    user_id: Annotated[
        Id | None, Meta(description="A session belongs to the first user it is given.")
    ] = None


class TwoLineChatBody(ChatFields, frozen=True, kw_only=True):
    """As for a session; the session is `session_id` or else `user_id`."""

    user_id: Id
    session_id: Id | None = None


class MessageInBody(RequestBody, frozen=True, kw_only=True):
    """A message to keep."""

    role: Role
    content: str | list[dict[str, Any]] | None = None
    name: Id | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: Annotated[Id | None, Meta(description="Required for the role tool.")] = None
    metadata: Metadata | None = None

    def body(self) -> MessageBody:
        return MessageBody(
            role=self.role,
            content=self.content,
            name=self.name,
            tool_calls=self.tool_calls,
            tool_call_id=self.tool_call_id,
            metadata=self.metadata,
        )


class AppendBody(RequestBody, frozen=True, kw_only=True):
    messages: Annotated[
        list[MessageInBody], Meta(extra_json_schema={"minItems": 1, "maxItems": BATCH_MESSAGES_MAX})
    ]
    user_id: Id | None = None
    if_last_id: Annotated[
        str | UnsetType | None,
        Meta(description="Append only after this message; null: only to an empty session."),
    ] = UNSET


class SessionSettingsBody(RequestBody, frozen=True, kw_only=True):
    """A session's settings."""

    metadata: Metadata | None = None
    context: Annotated[ContextBody | None, Meta(description="Default of its turns.")] = None
    ttl_seconds: Annotated[
        int | None,
        Meta(
            description="Seconds that it stays hot after its last use.",
            extra_json_schema={"minimum": TTL_SECONDS_MIN, "maximum": TTL_SECONDS_MAX},
        ),
    ] = None

    def document(self) -> SessionDocument:
        return SessionDocument(
            metadata=self.metadata,
            context=self.context.options() if self.context else None,
            ttl_seconds=self.ttl_seconds,
        )


class SessionBody(SessionSettingsBody, frozen=True, kw_only=True):
    id: Annotated[Id | None, Meta(description="A UUID is made where none is given.")] = None
    user_id: Id | None = None


class SessionPatchBody(RequestBody, frozen=True, kw_only=True):
    """A merge patch (RFC 7396): absent stays, null removes."""

    metadata: dict[str, Any] | UnsetType | None = UNSET
    context: dict[str, Any] | UnsetType | None = UNSET
    ttl_seconds: int | UnsetType | None = UNSET

    def changes(self) -> dict[str, Any]:
        return msgspec.to_builtins(self)


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
    reason: Literal["window"] | None


class ContextView(msgspec.Struct, frozen=True, kw_only=True):
    strategy: Strategy
    messages: list[MessageView]
    left_out: LeftOutView


class TurnContextView(msgspec.Struct, frozen=True, kw_only=True):
    strategy: Strategy
    messages: int


class TurnView(msgspec.Struct, frozen=True, kw_only=True):
    turn_id: TurnId
    session_id: str
    state: TurnState
    response: str | None
    """The answer's text."""
    user_message_id: MessageId
    message: MessageView | None
    usage: Usage
    model: str
    context: TurnContextView
    started_at: datetime
    finished_at: datetime
    tool_calls: list[dict[str, Any]] | UnsetType = UNSET


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
        context=TurnContextView(strategy=turn.context.strategy, messages=turn.context.messages),
        started_at=turn.started_at,
        finished_at=turn.finished_at,
        tool_calls=tool_calls or UNSET,
    )
