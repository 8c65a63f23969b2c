"""The OpenAPI document: Litestar's, with what it cannot know of limits, headers and media types."""

from collections.abc import Iterator
from typing import Any, Final

import msgspec
from litestar import Litestar

from service.api.bodies import (
    AppendBody,
    ChatBody,
    SessionBody,
    SessionPatchBody,
    ToolResultsBody,
    TwoLineChatBody,
)
from service.api.events import MEDIA_TYPE as EVENTS_MEDIA_TYPE
from service.api.problems import PROBLEM_MEDIA_TYPE
from service.api.requests import IDEMPOTENCY_KEY, LINES_MEDIA_TYPES
from service.api.user_bodies import ProfileBody, ProfilePatchBody
from service.core.import_lines import ImportLine
from service.core.recall import PAGE_LIMIT_MAX, WAIT_SECONDS_MAX
from service.domain.context import BUDGET_TOKENS_MAX, BUDGET_TOKENS_MIN, WINDOW_LAST_MAX
from service.domain.ids import ID_BYTES_MAX
from service.domain.words import QUERY_CHARACTERS_MAX

REQUEST_BODIES: Final = (
    *(TwoLineChatBody, ChatBody, AppendBody, SessionBody, SessionPatchBody),
    *(ToolResultsBody, ProfileBody, ProfilePatchBody, ImportLine),
)

_ID: Final = {"minLength": 1, "maxLength": ID_BYTES_MAX}
PARAMETER_LIMITS: Final[dict[str, dict[str, Any]]] = {
    "session_id": _ID,
    "user_id": _ID,
    "limit": {"minimum": 1, "maximum": PAGE_LIMIT_MAX},
    "last": {"minimum": 1, "maximum": WINDOW_LAST_MAX},
    "max_tokens": {"minimum": BUDGET_TOKENS_MIN, "maximum": BUDGET_TOKENS_MAX},
    "q": {"minLength": 1, "maxLength": QUERY_CHARACTERS_MAX},
    "from": {"format": "date-time"},
    "to": {"format": "date-time"},
    "timeout_seconds": {"minimum": 0, "maximum": WAIT_SECONDS_MAX},
    IDEMPOTENCY_KEY: {"minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
}
"""Told here and enforced by the domain: as limits of Litestar's they would be 400, not 422."""

_RETRY_AFTER_STATUSES: Final = frozenset({"409", "429", "503"})


EVENT: Final[dict[str, Any]] = {
    "type": "object",
    "description": (
        "A server-sent event. `data` is JSON: of `turn.started` the ids, of `delta` its text or "
        "parts of tool calls, of the others the turn. A further `turn.started` says that the turn "
        "began again, or went on with results of tools: what was told before is not part of it."
    ),
    "required": ["id", "event", "data"],
    "properties": {
        "id": {"type": "string", "description": "For Last-Event-ID."},
        "event": {"enum": ["turn.started", "delta", "turn.completed", "turn.failed"]},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
}


def openapi_document(described: Litestar) -> dict[str, Any]:
    """Request bodies as msgspec describes them, with their limits; headers; the merge patch."""
    document: dict[str, Any] = described.openapi_schema.to_schema()
    _, schemas = msgspec.json.schema_components(
        REQUEST_BODIES, ref_template="#/components/schemas/{name}"
    )
    document["components"]["schemas"] |= schemas
    _describe_patch(document)
    _describe_import(document)
    _describe_streams(document)
    for operation in _operations(document):
        parameters = operation.get("parameters", [])
        for parameter in parameters:
            parameter["schema"] |= PARAMETER_LIMITS.get(parameter["name"], {})
        keyed = any(parameter["name"] == IDEMPOTENCY_KEY for parameter in parameters)
        for status, response in operation["responses"].items():
            is_problem = PROBLEM_MEDIA_TYPE in response.get("content", {})
            response["headers"] = _headers(status, keyed=keyed, is_problem=is_problem)
            if "profile" in operation["operationId"] and not is_problem and status != "204":
                response["headers"]["ETag"] = _header("Names this version of the profile.")
    return document


def _operations(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for path in document["paths"].values():
        yield from path.values()


def _describe_patch(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    known, fields = (schemas[body]["properties"] for body in ("SessionBody", "SessionPatchBody"))
    for name in fields:
        # No default: what is absent stays as it is.
        fields[name] = {key: value for key, value in known[name].items() if key != "default"}
    for path in document["paths"].values():
        if "patch" in path:
            content = path["patch"]["requestBody"]["content"]
            content["application/merge-patch+json"] = content["application/json"]


def _describe_import(document: dict[str, Any]) -> None:
    line = {"schema": {"$ref": "#/components/schemas/ImportLine"}}
    document["paths"]["/v1/sessions/{session_id}/import"]["post"]["requestBody"] = {
        "description": "JSON Lines: each line is one message.",
        "required": True,
        "content": dict.fromkeys(LINES_MEDIA_TYPES, line),
    }


def _describe_streams(document: dict[str, Any]) -> None:
    """A turn is answered whole or as events."""
    turn = {"schema": {"$ref": "#/components/schemas/TurnView"}}
    events = {"schema": EVENT}
    for operation in _operations(document):
        content = operation["responses"].get("200", {})
        if operation["operationId"] in {"chat", "chat_in_session", "give_tool_results"}:
            content["content"] = {"application/json": turn, EVENTS_MEDIA_TYPE: events}
        elif operation["operationId"] == "get_turn_events":
            content["content"] = {EVENTS_MEDIA_TYPE: events}


def _headers(status: str, *, keyed: bool, is_problem: bool) -> dict[str, Any]:
    headers = {"X-Request-Id": _header("The trace id, as in problems and in the service's logs.")}
    if keyed and not is_problem:
        headers["Idempotency-Replayed"] = _header("`true` where the key had been used before.")
    if is_problem:
        headers["x-should-retry"] = _header("`true` or `false`: whether to send it again unasked.")
    if is_problem and status in _RETRY_AFTER_STATUSES:
        headers["Retry-After"] = _header("Seconds to wait, where waiting helps.")
    return headers


def _header(description: str) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string"}}
