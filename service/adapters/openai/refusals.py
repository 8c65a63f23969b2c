"""What a model's server says instead of an answer, as errors of the domain."""

import re
from http import HTTPStatus
from typing import Any, Final

import msgspec

from service.domain.errors import (
    ChatMemoryError,
    ContextTooLarge,
    ModelError,
    ModelTimeout,
    ModelUnavailable,
)

CONTEXT_NAMES: Final = frozenset({"context_length_exceeded", "exceed_context_size_error"})
RATE_LIMIT_NAMES: Final = frozenset({"rate_limit_exceeded", "rate_limit_error", "429"})

_NAME: Final = re.compile(r"[a-z0-9_.-]{1,64}")
_CLIENT_ERROR: Final = re.compile(r"4[0-9]{2}|invalid_[a-z_]{1,64}|badrequesterror")


class ErrorBody(msgspec.Struct):
    """What a server tells of its error, as far as it is read."""

    code: Any = None
    type: Any = None

    def names(self) -> list[str]:
        """The code and the type, as far as they are words or numbers."""
        given = (self.code, self.type)
        named = [str(name).lower() for name in given if isinstance(name, str | int)]
        return [name for name in named if name != "error"]


class _ErrorDocument(ErrorBody):
    error: ErrorBody | None = None


class CallFailed(Exception):
    """A call came to nothing: the caller's error, and whether the server is to blame.

    An outage is a status of 5xx, a time-out or a broken connection.
    """

    def __init__(self, error: ChatMemoryError, *, outage: bool) -> None:
        super().__init__(error.detail)
        self.error = error
        self.outage = outage


def read_error_names(content: bytes) -> list[str]:
    """Of an error document, or of an event that is one itself."""
    try:
        document = msgspec.json.decode(content, type=_ErrorDocument)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []
    return (document.error or document).names()


def of_status(status: int, content: bytes, *, retry_after_seconds: int) -> ChatMemoryError:
    names = [name for name in read_error_names(content) if not name.isdecimal()]
    if not CONTEXT_NAMES.isdisjoint(names):
        return _context_too_large()
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return _rate_limited(retry_after_seconds)
    if status == HTTPStatus.REQUEST_TIMEOUT:
        return ModelTimeout("The model's server did not get the question in time.")
    said = next((f", {name}" for name in names if _NAME.fullmatch(name)), "")
    detail = f"The model's server answered with status {status}{said}."
    passing = status == HTTPStatus.CONFLICT or status >= HTTPStatus.INTERNAL_SERVER_ERROR
    return ModelError(detail, retryable=passing)


def of_event(names: list[str]) -> ChatMemoryError:
    """The error for one that came inside a stream, where there is no status any more."""
    if not CONTEXT_NAMES.isdisjoint(names):
        return _context_too_large()
    if not RATE_LIMIT_NAMES.isdisjoint(names):
        return _rate_limited(1)
    refused = any(_CLIENT_ERROR.fullmatch(name) for name in names)
    return ModelError("The model broke off with an error.", retryable=not refused)


def _context_too_large() -> ContextTooLarge:
    return ContextTooLarge("The conversation is longer than the model's context.")


def _rate_limited(retry_after_seconds: int) -> ModelUnavailable:
    return ModelUnavailable(
        "The model's server is at its rate limit.", retry_after_seconds=retry_after_seconds
    )
