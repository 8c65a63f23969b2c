"""The model's troubles as errors of the domain. No prompt, key, address or server text in them."""

import re
from http import HTTPStatus
from typing import Final

import openai

from service.adapters.openai.wire import read_error_code
from service.domain.errors import (
    ChatMemoryError,
    ContextTooLarge,
    ModelError,
    ModelTimeout,
    ModelUnavailable,
)

CONTEXT_CODES: Final = frozenset({"context_length_exceeded", "exceed_context_size_error"})
RETRY_AFTER_SECONDS_MAX: Final = 60

_CODE: Final = re.compile(r"[a-zA-Z0-9_.-]{1,64}")


def translated(error: openai.APIError) -> ChatMemoryError:
    """The domain's error for one of the client's, after its retries."""
    match error:
        case openai.APITimeoutError():
            return ModelTimeout("The model did not answer in time.")
        case openai.APIConnectionError():
            return ModelUnavailable("The model's server cannot be reached.")
        case openai.APIStatusError():
            return _of_status(error)
        case _:
            return ModelError("The model's answer cannot be read.", retryable=True)


def _of_status(error: openai.APIStatusError) -> ChatMemoryError:
    status = error.status_code
    code = read_error_code(error.response.content)
    if code in CONTEXT_CODES:
        return ContextTooLarge("The conversation is longer than the model's context.")
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return ModelUnavailable(
            "The model's server is at its rate limit.", retry_after_seconds=_retry_after(error)
        )
    said = f", {code}" if _CODE.fullmatch(code) else ""
    detail = f"The model's server answered with status {status}{said}."
    return ModelError(detail, retryable=status >= HTTPStatus.INTERNAL_SERVER_ERROR)


def _retry_after(error: openai.APIStatusError) -> int:
    text = error.response.headers.get("retry-after", "")
    return min(max(int(text), 1), RETRY_AFTER_SECONDS_MAX) if text.isdecimal() else 1
