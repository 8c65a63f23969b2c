"""Request bodies. Limits are told in the schema and enforced by the domain (422)."""

from typing import Annotated, Any, Final

import msgspec
from msgspec import UNSET, Meta, UnsetType

from service.core.chat_request import TOOLS_MAX, OnBusy
from service.domain.context import (
    BUDGET_TOKENS_MAX,
    BUDGET_TOKENS_MIN,
    WINDOW_LAST_MAX,
    ContextOptions,
    Strategy,
)
from service.domain.ids import ID_BYTES_MAX
from service.domain.messages import BATCH_MESSAGES_MAX, CALL_ID_BYTES_MAX, MessageBody, Role
from service.domain.sessions import (
    TTL_SECONDS_MAX,
    TTL_SECONDS_MIN,
    SessionDocument,
)
from service.ports import Wanted

Id = Annotated[
    str,
    Meta(
        description="1 to 255 bytes of UTF-8 without control characters.",
        extra_json_schema={"minLength": 1, "maxLength": ID_BYTES_MAX},
    ),
]
CallId = Annotated[
    str,
    Meta(
        description="1 to 16,384 bytes of UTF-8 without NUL.",
        extra_json_schema={"minLength": 1, "maxLength": CALL_ID_BYTES_MAX},
    ),
]
Text = Annotated[str, Meta(extra_json_schema={"minLength": 1})]
DurabilityField = Annotated[
    Wanted,
    Meta(
        description=(
            "What the answer waits for: journaled (in Redis, as durable as its append-only file), "
            "fsynced (that file on the disk), archived (committed in PostgreSQL)."
        )
    ),
]
Stream = Annotated[
    bool,
    Meta(
        description=(
            "Answer with server-sent events: `turn.started`, a `delta` for each piece, and "
            "`turn.completed` or `turn.failed` with the turn."
        )
    ),
]
TYPED: Final = {"required": ["type"], "properties": {"type": {"type": "string"}}}
Metadata = Annotated[dict[str, Any], Meta(description="Free JSON of the caller's, at most 16 KiB.")]


class RequestBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all request bodies: what is not known is refused."""


class ContextBody(RequestBody, frozen=True, kw_only=True):
    """How much of the session the model is shown."""

    strategy: Annotated[
        Strategy | None,
        Meta(
            description=(
                "All of it (buffer), the last N messages (window), the newest that fit a budget "
                "(tokens), or a rolling summary and the newest that fit (summary)."
            )
        ),
    ] = None
    last: Annotated[
        int | None,
        Meta(
            description="Messages in a window; system and developer messages do not count.",
            extra_json_schema={"minimum": 1, "maximum": WINDOW_LAST_MAX},
        ),
    ] = None

    max_tokens: Annotated[
        int | None,
        Meta(
            description="Budget of the whole input, for tokens and summary; 8000 by default.",
            extra_json_schema={"minimum": BUDGET_TOKENS_MIN, "maximum": BUDGET_TOKENS_MAX},
        ),
    ] = None
    profile: Annotated[
        bool | None, Meta(description="Whether the model is shown the user's profile.")
    ] = None

    def options(self) -> ContextOptions:
        return ContextOptions(
            strategy=self.strategy,
            last=self.last,
            max_tokens=self.max_tokens,
            profile=self.profile,
        )


class ChatFields(RequestBody, frozen=True, kw_only=True):
    """What to say, and how to be answered."""

    message: Annotated[
        str | list[dict[str, Any]],
        Meta(
            description=(
                "Text, or typed parts as the model's server takes them: text, images, files."
            ),
            extra_json_schema={"minLength": 1, "minItems": 1},
        ),
    ]
    model: Id | None = None
    instructions: Annotated[
        Text | None, Meta(description="System instructions of this turn; they are not stored.")
    ] = None
    temperature: Annotated[float | None, Meta(extra_json_schema={"minimum": 0, "maximum": 2})] = (
        None
    )
    max_output_tokens: Annotated[int | None, Meta(extra_json_schema={"minimum": 1})] = None
    tools: Annotated[
        list[dict[str, Any]] | None,
        Meta(
            description=(
                "Functions that the model may call, as the model's server takes them. A turn that "
                "ends in `tool_calls` goes on with their results."
            ),
            extra_json_schema={"minItems": 1, "maxItems": TOOLS_MAX, "items": TYPED},
        ),
    ] = None
    tool_choice: Annotated[
        str | dict[str, Any] | None,
        Meta(
            description=(
                "none, auto, required, or the tool to call. What is demanded holds for the first "
                "call of the model: with results it chooses by itself."
            ),
            extra_json_schema={"examples": ["auto"]},
        ),
    ] = None
    response_format: Annotated[
        dict[str, Any] | None,
        Meta(
            description="The form of the answer, as the model's server takes it.",
            extra_json_schema=TYPED,
        ),
    ] = None
    context: ContextBody | None = None
    stream: Stream = False
    on_busy: Annotated[
        OnBusy,
        Meta(
            description=(
                "Beside another turn of the session: refuse (409 session_busy), or wait for its "
                "end, first come first served, at most TURN_WAIT_SECONDS."
            )
        ),
    ] = "reject"
    durability: DurabilityField = "journaled"


class ChatBody(ChatFields, frozen=True, kw_only=True):
    """What to say in a session, and how to be answered."""

    user_id: Annotated[
        Id | None, Meta(description="A session belongs to the first user it is given.")
    ] = None


class TwoLineChatBody(ChatFields, frozen=True, kw_only=True):
    """As for a session; the session is `session_id` or else `user_id`."""

    user_id: Id
    session_id: Id | None = None


class ToolResultBody(RequestBody, frozen=True, kw_only=True):
    """What a tool that the model called has to say."""

    tool_call_id: CallId
    content: str | list[dict[str, Any]]


class ToolResultsBody(RequestBody, frozen=True, kw_only=True):
    results: Annotated[
        list[ToolResultBody],
        Meta(
            description="One for each call that the turn waits for, in any order.",
            extra_json_schema={"minItems": 1},
        ),
    ]
    stream: Stream = False


class MessageInBody(RequestBody, frozen=True, kw_only=True):
    """A message to keep."""

    role: Role
    content: str | list[dict[str, Any]] | None = None
    name: Id | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: Annotated[CallId | None, Meta(description="Required for the role tool.")] = None
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
    durability: DurabilityField = "journaled"


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


class ContextPatchBody(RequestBody, frozen=True, kw_only=True):
    """Changes of a session's context: absent stays, null removes."""

    strategy: Strategy | UnsetType | None = UNSET
    last: int | UnsetType | None = UNSET
    max_tokens: int | UnsetType | None = UNSET
    profile: bool | UnsetType | None = UNSET


class SessionPatchBody(RequestBody, frozen=True, kw_only=True):
    """A merge patch (RFC 7396): absent stays, null removes."""

    metadata: dict[str, Any] | UnsetType | None = UNSET
    context: ContextPatchBody | UnsetType | None = UNSET
    ttl_seconds: int | UnsetType | None = UNSET

    def changes(self) -> dict[str, Any]:
        changes = _given(self)
        if isinstance(self.context, ContextPatchBody):
            changes["context"] = _given(self.context)
        return changes


def _given(body: msgspec.Struct) -> dict[str, Any]:
    fields = {name: getattr(body, name) for name in body.__struct_fields__}
    return {name: value for name, value in fields.items() if value is not UNSET}
