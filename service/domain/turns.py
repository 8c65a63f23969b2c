"""Turns: a user's message, the model's answer, and the state between them."""

import uuid
from collections.abc import Iterable
from datetime import datetime
from typing import Any, Literal

import msgspec

from service.domain.context import Strategy
from service.domain.ids import MessageId, TurnId
from service.domain.messages import CALL_ID_BYTES_MAX, Message, MessageBody

TurnState = Literal["running", "completed", "incomplete", "cancelled", "failed", "interrupted"]


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens as the model's server counted them; zero where it did not say."""

    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            total_tokens=self.total_tokens + other.total_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
            reasoning_tokens=self.reasoning_tokens + other.reasoning_tokens,
        )


class TurnContext(msgspec.Struct, frozen=True, kw_only=True):
    """What of the session the model was shown, without the new message."""

    strategy: Strategy
    messages: int
    tokens: int = 0
    """Of the whole input, as counted here before the model was asked."""


class TurnError(msgspec.Struct, frozen=True, kw_only=True):
    """Why a turn did not come to its end."""

    code: str
    title: str
    detail: str
    retryable: bool


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """A turn as its caller sees it; ``message`` is the stored answer, None where nothing was said.

    One that runs, or whose process died, has neither model nor context to tell of.
    """

    turn_id: TurnId
    session_id: str
    state: TurnState
    user_message_id: MessageId
    message: Message | None = None
    usage: Usage = Usage()
    model: str | None = None
    context: TurnContext | None = None
    started_at: datetime
    finished_at: datetime | None = None
    error: TurnError | None = None
    attempt: str = ""
    """Tells its runs apart: one that failed may be run again."""


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """One call of the model: the messages in wire order and the caller's choices."""

    messages: tuple[dict[str, Any], ...]
    model: str
    temperature: float | None = None
    max_output_tokens: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None


class Delta(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of an answer, as it came: text, or parts of tool calls in their wire form."""

    text: str = ""
    tool_calls: list[dict[str, Any]] | None = None


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What the model said. ``complete`` is False at its token limit or a content filter."""

    content: str | None
    tool_calls: list[dict[str, Any]] | None
    complete: bool
    usage: Usage
    model: str
    finish_reason: str | None = None
    """Why it ended, where the server gave a reason of Chat Completions."""


def named_calls(
    calls: list[dict[str, Any]] | None, said: Iterable[MessageBody] = ()
) -> list[dict[str, Any]] | None:
    """Tool calls with an id each that results can name, and none in the turn had before.

    Some servers give none, all the same, or those of the last calls again.
    """
    if calls is None:
        return None
    names: set[object] = {call.get("id") for body in said for call in body.tool_calls or ()}
    named: list[dict[str, Any]] = []
    for call in calls:
        name = call.get("id")
        if not _is_call_id(name) or name in names:
            name = f"call_{uuid.uuid4().hex}"
        names.add(name)
        named.append(call | {"id": name})
    return named


def _is_call_id(name: object) -> bool:
    if not isinstance(name, str) or not name or "\x00" in name:
        return False
    return len(name.encode()) <= CALL_ID_BYTES_MAX
