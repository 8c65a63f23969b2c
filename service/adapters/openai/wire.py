"""What both wire formats share: their ports, and reading text that others wrote."""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Final, Protocol

import msgspec

from service.adapters.openai.events import Event
from service.adapters.openai.tool_calls import Part, ToolCallAssembly
from service.domain.errors import ModelError
from service.domain.ids import ID_BYTES_MAX
from service.domain.turns import Answer, Delta, Prompt, Usage

TOKENS_MAX: Final = 2**31 - 1
ANSWER_BYTES_MAX: Final = 4 * 1024 * 1024
"""Of an answer's text and its tool calls' arguments."""

Tokens = Annotated[int, msgspec.Meta(ge=0, le=TOKENS_MAX)]

FINISH_REASONS: Final = frozenset(
    {"stop", "length", "tool_calls", "content_filter", "function_call"}
)

_NUL: Final = re.compile(rb"(?<!\\)((?:\\\\)*)\\u0000")
"""An escaped NUL character in JSON; not a text that spells the escape out."""

UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Reading(Protocol):
    """One streamed answer, taken event by event."""

    @property
    def begun(self) -> bool:
        """The model has said or thought something."""
        ...

    @property
    def ended(self) -> bool:
        """The model has said all; only the usage may be missing."""
        ...

    @property
    def over(self) -> bool:
        """Nothing follows."""
        ...

    def take(self, event: Event) -> Delta | None:
        """What the event adds for the caller. Raises ModelError and its kin."""
        ...

    def answer(self) -> Answer:
        """The whole. Raises ModelError where the stream was cut off or said nothing."""
        ...


class WireFormat(Protocol):
    """How a server is asked and how it answers."""

    @property
    def path(self) -> str: ...

    def body(self, prompt: Prompt, *, streamed: bool) -> dict[str, Any]: ...

    def read_answer(self, content: bytes, asked_model: str) -> Answer:
        """Raises ModelError where the body is no answer."""
        ...

    def reading(self, asked_model: str) -> Reading: ...


class Gathered:
    """What a stream has said so far, within ANSWER_BYTES_MAX."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._size = 0
        self._tool_calls = ToolCallAssembly()

    def add(self, text: str, parts: Sequence[Part] = (), *, event_bytes: int) -> Delta | None:
        """The delta of an event; None where it adds nothing."""
        if not text and not parts:
            return None
        self._size += len(text.encode()) + (event_bytes if parts else 0)
        if self._size > ANSWER_BYTES_MAX:
            raise too_long()
        if text:
            self._texts.append(text)
        return Delta(text=text, tool_calls=[self._tool_calls.add(part) for part in parts] or None)

    @property
    def text(self) -> str:
        return "".join(self._texts)

    def tool_calls(self) -> list[Part] | None:
        return self._tool_calls.calls()


def too_long() -> ModelError:
    return ModelError(f"The model's answer is longer than {ANSWER_BYTES_MAX} bytes.")


def unreadable() -> ModelError:
    return ModelError("The model's answer cannot be read.", retryable=True)


def truncated() -> ModelError:
    return ModelError("The model's answer was cut off.", retryable=True)


def empty(reason: str | None) -> ModelError:
    """An answer without text: asking again helps where the model gave no reason."""
    match reason:
        case "length":
            return ModelError("The model reached its token limit before it said anything.")
        case "content_filter":
            return ModelError("The model's answer was held back by a content filter.")
        case _:
            return ModelError("The model's answer is empty.", retryable=True)


def known_reason(named: str | None) -> str | None:
    """Servers may write anything there, and it is told to operators."""
    return named if named in FINISH_REASONS else None


def model_name(named: str | None, asked: str) -> str:
    """What the server calls its model, if that can be a name: it is counted and stored under it."""
    if named and len(named.encode()) <= ID_BYTES_MAX and named.isprintable():
        return named
    return asked


def without_nul(content: bytes) -> bytes:
    """NUL characters become U+FFFD: PostgreSQL refuses them, and no caller is there to blame."""
    return _NUL.sub(rb"\1\\ufffd", content) if b"\\u0000" in content else content


def usage_of(
    asked: int | None,
    answered: int | None,
    total: int | None,
    *,
    cached: int | None,
    reasoning: int | None,
) -> Usage:
    asked, answered = asked or 0, answered or 0
    return Usage(
        input_tokens=asked,
        output_tokens=answered,
        total_tokens=total or asked + answered,
        cached_tokens=cached or 0,
        reasoning_tokens=reasoning or 0,
    )
