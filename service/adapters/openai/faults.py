"""The model's troubles as errors of the domain. No prompt, key, address or server text in them."""

import math
import re
import time
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Final

import openai

from service.adapters.openai.wire import read_error_names
from service.domain.errors import (
    ChatMemoryError,
    ContextTooLarge,
    ModelError,
    ModelTimeout,
    ModelUnavailable,
)

CONTEXT_CODES: Final = frozenset({"context_length_exceeded", "exceed_context_size_error"})
RETRY_AFTER_SECONDS_MAX: Final = 60

_NAME: Final = re.compile(r"[a-z0-9_.-]{1,64}")
_SECONDS: Final = re.compile(r"[0-9]+(\.[0-9]+)?")


def translated(error: Exception) -> ChatMemoryError:
    """The domain's error for one of the client's, after its retries."""
    match error:
        case openai.APITimeoutError() | TimeoutError():
            return ModelTimeout("The model did not answer in time.")
        case openai.APIConnectionError():
            return ModelUnavailable("The model's server cannot be reached.")
        case openai.APIStatusError():
            return _of_status(error)
        case openai.APIError():
            return ModelError("The model's answer cannot be read.", retryable=True)
        case _:
            # A key that is no header value, a port that is none: the client lets those through as
            # they are, some with the key in their words.
            return ModelError(f"The model cannot be asked: {type(error).__name__}.")


def _of_status(error: openai.APIStatusError) -> ChatMemoryError:
    status = error.status_code
    names = read_error_names(error.response.content)
    if not CONTEXT_CODES.isdisjoint(names):
        return ContextTooLarge("The conversation is longer than the model's context.")
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return ModelUnavailable(
            "The model's server is at its rate limit.", retry_after_seconds=_retry_after(error)
        )
    if status == HTTPStatus.REQUEST_TIMEOUT:
        return ModelTimeout("The model's server did not get the question in time.")
    said = next((f", {name}" for name in names if _NAME.fullmatch(name)), "")
    detail = f"The model's server answered with status {status}{said}."
    passing = status == HTTPStatus.CONFLICT or status >= HTTPStatus.INTERNAL_SERVER_ERROR
    return ModelError(detail, retryable=passing)


def _retry_after(error: openai.APIStatusError) -> int:
    """Whole seconds of the server's Retry-After, which is a number or a date; else one."""
    text = error.response.headers.get("retry-after", "")
    if _SECONDS.fullmatch(text):
        seconds = float(text)
    else:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, OverflowError):
            seconds = 1
    return math.ceil(min(max(seconds, 1), RETRY_AFTER_SECONDS_MAX))
