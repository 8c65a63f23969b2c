"""What a Chat Completions server answers, as far as it is read here."""

from typing import Any

import msgspec

from service.domain.errors import ModelError
from service.domain.turns import Answer, Usage


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _CompletionDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
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
    usage: _Usage | None = None


class _ErrorBody(msgspec.Struct):
    code: str | int | None = None
    type: str | None = None


class _ErrorDocument(msgspec.Struct):
    error: _ErrorBody | None = None


def read_answer(content: bytes, asked_model: str) -> Answer:
    """Raises ModelError where the body is no answer."""
    try:
        completion = msgspec.json.decode(content, type=_Completion)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
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
        model=completion.model or asked_model,
    )


def read_error_code(content: bytes) -> str:
    """The code or type that the server gave its error; empty where it gave none."""
    try:
        document = msgspec.json.decode(content, type=_ErrorDocument)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""
    if document.error is None:
        return ""
    code = document.error.code
    return code if isinstance(code, str) and code else document.error.type or ""


def _read_usage(usage: _Usage | None) -> Usage:
    if usage is None:
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
