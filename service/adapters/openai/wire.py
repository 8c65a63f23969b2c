"""What a Chat Completions server answers, as far as it is read here."""

import re
from typing import Annotated, Any, Final

import msgspec

from service.domain.errors import ModelError
from service.domain.ids import ID_BYTES_MAX
from service.domain.turns import Answer, Usage

TOKENS_MAX: Final = 2**31 - 1

_NUL: Final = re.compile(rb"(?<!\\)((?:\\\\)*)\\u0000")
"""An escaped NUL character in JSON; not a text that spells the escape out."""

_Tokens = Annotated[int, msgspec.Meta(ge=0, le=TOKENS_MAX)]


class _PromptDetails(msgspec.Struct):
    cached_tokens: _Tokens | None = None


class _CompletionDetails(msgspec.Struct):
    reasoning_tokens: _Tokens | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: _Tokens | None = None
    completion_tokens: _Tokens | None = None
    total_tokens: _Tokens | None = None
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


class _ErrorBody(msgspec.Struct):
    code: Any = None
    type: Any = None


class _ErrorDocument(msgspec.Struct):
    error: _ErrorBody | None = None


def read_answer(content: bytes, asked_model: str) -> Answer:
    """Raises ModelError where the body is no answer."""
    try:
        completion = msgspec.json.decode(_without_nul(content), type=_Completion)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelError("The model's answer cannot be read.", retryable=True) from error
    if not completion.choices:
        raise ModelError("The model's answer has no choices.", retryable=True)

    choice = completion.choices[0]
    # A refusal is what the model said, not a fault.
    text = choice.message.content or choice.message.refusal
    tool_calls = choice.message.tool_calls or None
    if not text and tool_calls is None:
        raise ModelError("The model's answer is empty.", retryable=True)
    return Answer(
        content=text or None,
        tool_calls=tool_calls,
        complete=choice.finish_reason not in {"length", "content_filter"},
        usage=_read_usage(completion.usage),
        model=_model_name(completion.model, asked_model),
    )


def _model_name(named: str | None, asked: str) -> str:
    """What the server calls its model, if that can be a name: it is counted and stored under it."""
    if named and len(named.encode()) <= ID_BYTES_MAX and named.isprintable():
        return named
    return asked


def read_error_names(content: bytes) -> list[str]:
    """The code and the type that the server gave its error, as far as they are words."""
    try:
        document = msgspec.json.decode(content, type=_ErrorDocument)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []
    if document.error is None:
        return []
    names = (document.error.code, document.error.type)
    return [name.lower() for name in names if isinstance(name, str)]


def _without_nul(content: bytes) -> bytes:
    """NUL characters become U+FFFD: PostgreSQL refuses them, and no caller is there to blame."""
    return _NUL.sub(rb"\1\\ufffd", content) if b"\\u0000" in content else content


def _read_usage(raw: msgspec.Raw) -> Usage:
    """Counts that are missing or make no sense cost nobody an answer: they are zero."""
    try:
        usage = msgspec.json.decode(raw, type=_Usage)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Usage()
    asked, answered = usage.prompt_tokens or 0, usage.completion_tokens or 0
    cached = usage.prompt_tokens_details
    reasoning = usage.completion_tokens_details
    return Usage(
        input_tokens=asked,
        output_tokens=answered,
        total_tokens=usage.total_tokens or asked + answered,
        cached_tokens=(cached.cached_tokens if cached else None) or 0,
        reasoning_tokens=(reasoning.reasoning_tokens if reasoning else None) or 0,
    )
