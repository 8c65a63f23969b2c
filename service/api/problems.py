"""Errors as problem documents (RFC 9457): one table from codes to statuses, one shape for all."""

import re
from collections.abc import Mapping
from typing import Any, Final, cast

import msgspec
import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException
from litestar.exceptions.http_exceptions import RequestEntityTooLarge
from litestar.types import Message

from service.api.tracing import trace_id_of
from service.domain.errors import (
    ChatMemoryError,
    Draining,
    FieldError,
    InvalidRequest,
    PreconditionFailed,
    SessionBusy,
)

PROBLEM_MEDIA_TYPE: Final = "application/problem+json"

STATUS_OF: Final[Mapping[str, int]] = {
    "invalid_request": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "session_exists": 409,
    "session_busy": 409,
    "request_running": 409,
    "turn_state": 409,
    "precondition_failed": 412,
    "too_large": 413,
    "unsupported_media_type": 415,
    "invalid_value": 422,
    "idempotency_key_reused": 422,
    "durability_unavailable": 422,
    "context_too_large": 422,
    "rate_limited": 429,
    "internal": 500,
    "model_error": 502,
    "model_unavailable": 503,
    "archive_unavailable": 503,
    "hot_unavailable": 503,
    "backlog_full": 503,
    "overloaded": 503,
    "draining": 503,
    "model_timeout": 504,
}

_OF_THE_SERVER: Final[Mapping[int, tuple[str, str]]] = {
    400: ("invalid_request", "The request is malformed"),
    404: ("not_found", "Not found"),
    405: ("method_not_allowed", "The method is not allowed here"),
    413: ("too_large", "Too large"),
    415: ("unsupported_media_type", "The media type is not supported"),
}

_NAMED_FIELD: Final = re.compile(r"(?:missing required|unknown) field `([^`]+)`")

log = structlog.stdlib.get_logger("chat_memory")


class UnsupportedMediaType(ChatMemoryError):
    code = "unsupported_media_type"
    title = "The media type is not supported"


class Problem(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Why a request was not carried out."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    """Stable and made for programs, such as `session_busy`."""
    trace_id: str
    """Names the request in the service's logs."""
    retryable: bool
    """Whether the same request may succeed later."""
    errors: list[FieldError] | msgspec.UnsetType = msgspec.UNSET
    """The fields at fault, where fields are."""
    last_id: str | msgspec.UnsetType | None = msgspec.UNSET
    """With `precondition_failed`: the session's last message, null where it is empty."""


def problem_type(code: str) -> str:
    return f"urn:chat-memory:problem:{code}"


def answer_domain_error(request: Request[Any, Any, Any], error: ChatMemoryError) -> Response[Any]:
    status = STATUS_OF[error.code]
    if status >= 500:  # noqa: PLR2004  # The first status that is the service's own fault.
        log.warning("request_failed", code=error.code, detail=error.detail)
    problem = _problem(
        request,
        error.code,
        title=error.title,
        detail=error.detail,
        retryable=error.may_retry,
        errors=error.errors,
    )
    if isinstance(error, PreconditionFailed):
        problem = msgspec.structs.replace(problem, last_id=error.last_id)
    return _response(problem, _retry_headers(error))


def answer_http_error(request: Request[Any, Any, Any], error: HTTPException) -> Response[Any]:
    """For what Litestar itself refuses: routes, methods, parameters, sizes."""
    if error.status_code not in _OF_THE_SERVER:
        return answer_unexpected(request, error)
    code, title = _OF_THE_SERVER[error.status_code]
    errors = _errors_of(request, error)
    detail = _detail(error, errors)
    problem = _problem(request, code, title=title, detail=detail, retryable=False, errors=errors)
    headers = {"x-should-retry": "false"}
    if allow := (error.headers or {}).get("allow"):
        headers["allow"] = allow
    return _response(problem, headers)


def answer_unexpected(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    """For what nobody foresaw: logged with its trace, told without its internals."""
    log.error("unexpected_error", kind=type(error).__name__, exc_info=error)
    problem = _problem(
        request,
        "internal",
        title="Internal error",
        detail="Something went wrong here. It is logged under the trace id.",
        retryable=True,
        errors=(),
    )
    return _response(problem, {"x-should-retry": "true"})


def malformed(detail: str, trace_id: str) -> bytes:
    """The problem of what is no request, and so never got to the application."""
    code = "invalid_request"
    problem = Problem(
        type=problem_type(code),
        title="The request is malformed",
        status=STATUS_OF[code],
        detail=detail,
        code=code,
        trace_id=trace_id,
        retryable=False,
    )
    return msgspec.json.encode(problem)


def cut_off_answer(trace_id: str) -> list[Message]:
    """The messages of an answer to a request that the end of the process cut off."""
    error = Draining("The service is shutting down; the request was not finished.")
    problem = Problem(
        type=problem_type(error.code),
        title=error.title,
        status=STATUS_OF[error.code],
        detail=error.detail,
        code=error.code,
        trace_id=trace_id,
        retryable=error.may_retry,
    )
    headers = _retry_headers(error) | {"content-type": PROBLEM_MEDIA_TYPE, "connection": "close"}
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    return [
        {"type": "http.response.start", "status": problem.status, "headers": raw},
        {"type": "http.response.body", "body": msgspec.json.encode(problem), "more_body": False},
    ]


def misfit(error: msgspec.ValidationError) -> InvalidRequest:
    """Msgspec's words for a body that does not fit, with its path as the field."""
    message, _, place = str(error).partition(" - at `")
    field = place.rstrip("`").removeprefix("$").removeprefix(".")
    if named := _NAMED_FIELD.search(message):
        field = f"{field}.{named[1]}" if field else named[1]
    field = field or "body"
    return InvalidRequest(f"{field}: {message}", errors=[FieldError(field=field, message=message)])


def _problem(
    request: Request[Any, Any, Any],
    code: str,
    *,
    title: str,
    detail: str,
    retryable: bool,
    errors: tuple[FieldError, ...],
) -> Problem:
    return Problem(
        type=problem_type(code),
        title=title,
        status=STATUS_OF[code],
        detail=detail,
        code=code,
        trace_id=trace_id_of(request.scope),
        retryable=retryable,
        errors=list(errors) if errors else msgspec.UNSET,
    )


def _retry_headers(error: ChatMemoryError) -> dict[str, str]:
    # The openai client obeys x-should-retry. A busy session is its caller's to decide about.
    retry = error.may_retry and not isinstance(error, SessionBusy)
    headers = {"x-should-retry": "true" if retry else "false"}
    if error.retry_after_seconds is not None:
        headers["retry-after"] = str(error.retry_after_seconds)
    return headers


def _errors_of(request: Request[Any, Any, Any], error: HTTPException) -> tuple[FieldError, ...]:
    if isinstance(error, RequestEntityTooLarge):
        limit = request.route_handler.resolve_request_max_body_size()
        return (FieldError(field="body", message=f"must be at most {limit} bytes"),)
    extra: object = error.extra if isinstance(error, ValidationException) else None
    items = cast("list[dict[str, str]]", extra) if isinstance(extra, list) else []
    return tuple(
        FieldError(field="body", message="is required")
        if item.get("key") == "data"
        else FieldError(field=_outer_name(item.get("key", "body")), message=item.get("message", ""))
        for item in items
    )


def _outer_name(parameter: str) -> str:
    # Python has a word of its own for one of them.
    return {"from_time": "from", "to_time": "to"}.get(parameter, parameter)


def _detail(error: HTTPException, errors: tuple[FieldError, ...]) -> str:
    if errors:
        return "; ".join(f"{one.field}: {one.message}" for one in errors)
    return _OF_THE_SERVER[error.status_code][1] + "."


def _response(problem: Problem, headers: dict[str, str]) -> Response[Any]:
    return Response(
        msgspec.json.encode(problem),
        status_code=problem.status,
        media_type=PROBLEM_MEDIA_TYPE,
        headers=headers,
    )
