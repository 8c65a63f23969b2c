"""Importing a session's past."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

import msgspec
from litestar import Controller, Request, Response, post
from litestar.params import FromPath, QueryParameter

from service.api.conversations import Key
from service.api.documentation import CREATE_PROBLEMS, problems
from service.api.middleware import IMPORT
from service.api.problems import UnsupportedMediaType
from service.api.requests import LINES_MEDIA_TYPES, check_key, session_ref
from service.api.use_cases import Injected
from service.domain.errors import InvalidRequest
from service.domain.ids import MessageId
from service.ports import Import


class ImportedView(msgspec.Struct, frozen=True, kw_only=True):
    imported: int
    first_id: MessageId
    last_id: MessageId


class SessionImports(Controller):
    """What was said before, or elsewhere."""

    tags = ["Messages"]  # noqa: RUF012  # Litestar's convention.
    path = "/v1/sessions/{session_id:str}"

    @post(
        "/import",
        operation_id="import_messages",
        summary="Import messages into an empty session",
        responses=problems(
            *("not_found", "session_busy", "request_running", "precondition_failed"),
            "idempotency_key_reused",
            *CREATE_PROBLEMS,
        ),
        opt=IMPORT,
        # Never held as a whole: the use case counts what comes.
        request_max_body_size=None,
    )
    async def run(
        self,
        request: Request[Any, Any, Any],
        use_cases: Injected,
        session_id: FromPath[str],
        user_id: Annotated[
            str | None, QueryParameter(description="A session belongs to the first user it got.")
        ] = None,
        idempotency_key: Key = None,
    ) -> Response[ImportedView]:
        """JSON Lines, a message each, in order; all or none, straight into the archive.

        With `created_at` a message keeps its time, to the microsecond; without it, it has that of
        the line before. Only into a session that is unknown or has no messages, else 412. The
        fields of an export are taken; `id`, `session_id`, `token_count` and `type` are ignored.
        """
        _check_media_type(request)
        check_key(idempotency_key)
        command = Import(ref=session_ref(session_id), user_id=user_id, key=idempotency_key)
        async with aclosing(_chunks(request)) as chunks:
            imported = await use_cases.importing.stream(
                command, chunks, announced=_announced(request)
            )
        view = ImportedView(
            imported=imported.imported, first_id=imported.first_id, last_id=imported.last_id
        )
        headers = {"Idempotency-Replayed": "true"} if imported.replayed else {}
        return Response(view, headers=headers)


async def _chunks(request: Request[Any, Any, Any]) -> AsyncGenerator[bytes]:
    """The body as it comes. Raises InvalidRequest where the client leaves before its end."""
    more = True
    while more:
        event: Any = await request.receive()
        if event["type"] == "http.disconnect":
            raise InvalidRequest("The client left before the end of the body.")
        more = event.get("more_body", False)
        if chunk := event.get("body", b""):
            yield chunk


def _announced(request: Request[Any, Any, Any]) -> int | None:
    length = request.headers.get("content-length", "")
    return int(length) if length.isdecimal() else None


def _check_media_type(request: Request[Any, Any, Any]) -> None:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in LINES_MEDIA_TYPES:
        raise UnsupportedMediaType(f"Content-Type must be {' or '.join(LINES_MEDIA_TYPES)}.")
