"""The Chat Completions wire format, which every OpenAI-compatible server speaks."""

from typing import Any, Final

import msgspec

from service.adapters.openai.events import Event
from service.adapters.openai.refusals import of_event, read_error_names
from service.adapters.openai.wire import (
    UNREADABLE,
    Gathered,
    Tokens,
    empty,
    known_reason,
    model_name,
    truncated,
    unreadable,
    usage_of,
    without_nul,
)
from service.domain.errors import ModelError
from service.domain.turns import Answer, Delta, Prompt, Usage

CUT_REASONS: Final = frozenset({"length", "content_filter"})
DONE: Final = b"[DONE]"
NO_USAGE: Final = (b"", b"null")
"""What every chunk but the last says of it."""


class _PromptDetails(msgspec.Struct):
    cached_tokens: Tokens | None = None


class _CompletionDetails(msgspec.Struct):
    reasoning_tokens: Tokens | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: Tokens | None = None
    completion_tokens: Tokens | None = None
    total_tokens: Tokens | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None


class _Message(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice]
    model: str | None = None
    usage: msgspec.Raw = msgspec.Raw()


class _Piece(_Message):
    # Servers of reasoning models stream what they think under one of these names.
    reasoning_content: Any = None
    reasoning: Any = None


class _ChunkChoice(msgspec.Struct):
    delta: _Piece | None = None
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_ChunkChoice] | None = None
    model: str | None = None
    usage: msgspec.Raw = msgspec.Raw()
    error: Any = None


_chunks: Final = msgspec.json.Decoder(_Chunk)


class ChatCompletions:
    """WireFormat of POST /chat/completions."""

    path = "/chat/completions"

    def body(self, prompt: Prompt, *, streamed: bool) -> dict[str, Any]:
        chosen: dict[str, Any] = {
            "temperature": prompt.temperature,
            # OpenAI's reasoning models refuse max_tokens; llama.cpp's server reads both and prefers
            # this one. Never both: OpenAI refuses that too.
            "max_completion_tokens": prompt.max_output_tokens,
            "tools": prompt.tools,
            "tool_choice": prompt.tool_choice,
            "response_format": prompt.response_format,
        }
        if streamed:
            chosen |= {"stream": True, "stream_options": {"include_usage": True}}
        asked: dict[str, Any] = {"model": prompt.model, "messages": list(prompt.messages)}
        return asked | {name: value for name, value in chosen.items() if value is not None}

    def read_answer(self, content: bytes, asked_model: str) -> Answer:
        try:
            completion = msgspec.json.decode(without_nul(content), type=_Completion)
        except UNREADABLE as error:
            raise unreadable() from error
        if not completion.choices:
            raise ModelError("The model's answer has no choices.", retryable=True)

        choice = completion.choices[0]
        # A refusal is what the model said, not a fault.
        text = choice.message.content or choice.message.refusal
        tool_calls = choice.message.tool_calls or None
        if not text and tool_calls is None:
            raise empty(choice.finish_reason)
        return Answer(
            content=text or None,
            tool_calls=tool_calls,
            complete=choice.finish_reason not in CUT_REASONS,
            usage=_read_usage(completion.usage),
            model=model_name(completion.model, asked_model),
            finish_reason=known_reason(choice.finish_reason),
        )

    def reading(self, asked_model: str) -> "CompletionReading":
        return CompletionReading(asked_model)


class CompletionReading:
    """Reading of the chunks of one completion."""

    def __init__(self, asked_model: str) -> None:
        self._model = asked_model
        self._gathered = Gathered()
        self._finish_reason: str | None = None
        self._usage = Usage()
        self.begun = False
        self.over = False

    @property
    def ended(self) -> bool:
        return self._finish_reason is not None

    def take(self, event: Event) -> Delta | None:
        if event.data == DONE:
            self.over = True
            return None
        if event.name == b"error":
            raise of_event(read_error_names(event.data))
        try:
            chunk = _chunks.decode(without_nul(event.data))
        except UNREADABLE as error:
            raise unreadable() from error
        if chunk.error is not None:
            raise of_event(read_error_names(event.data))

        self._model = model_name(chunk.model, self._model)
        if bytes(chunk.usage) not in NO_USAGE:
            self._usage = _read_usage(chunk.usage)
        if not chunk.choices:
            return None
        return self._take_choice(chunk.choices[0], len(event.data))

    def answer(self) -> Answer:
        if self._finish_reason is None:
            raise truncated()
        text, tool_calls = self._gathered.text, self._gathered.tool_calls()
        if not text and tool_calls is None:
            raise empty(self._finish_reason)
        return Answer(
            content=text or None,
            tool_calls=tool_calls,
            complete=self._finish_reason not in CUT_REASONS,
            usage=self._usage,
            model=self._model,
            finish_reason=known_reason(self._finish_reason),
        )

    def _take_choice(self, choice: _ChunkChoice, event_bytes: int) -> Delta | None:
        if choice.finish_reason == "error":
            raise of_event([])
        self._finish_reason = choice.finish_reason or self._finish_reason
        piece = choice.delta or _Piece()
        delta = self._gathered.add(
            (piece.content or "") + (piece.refusal or ""),
            piece.tool_calls or (),
            event_bytes=event_bytes,
        )
        thought = piece.reasoning_content or piece.reasoning
        self.begun = self.begun or delta is not None or bool(thought)
        return delta


def _read_usage(raw: msgspec.Raw) -> Usage:
    """Counts that are missing or make no sense cost nobody an answer: they are zero."""
    try:
        usage = msgspec.json.decode(raw, type=_Usage)
    except UNREADABLE:
        return Usage()
    cached, reasoning = usage.prompt_tokens_details, usage.completion_tokens_details
    return usage_of(
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.total_tokens,
        cached=cached.cached_tokens if cached else None,
        reasoning=reasoning.reasoning_tokens if reasoning else None,
    )
