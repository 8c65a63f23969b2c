"""The API application over a store in memory, called in process."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec
from opentelemetry.trace import Tracer

from service.api.app import create_app
from service.api.use_cases import ApiSettings, UseCases
from service.bootstrap.ambient import SystemClock
from service.bootstrap.stores import open_store
from service.bootstrap.use_cases import running_use_cases
from service.core.readiness import Readiness
from service.ports import StreamingModel
from service.settings import Settings
from tests.support.stores import Recorder

MESSAGE_BYTES_MAX = 1000
BODY_BYTES_MAX = 20_000


class Client(msgspec.Struct):
    """HTTP to the application, and what it observed."""

    http: httpx.AsyncClient
    recorder: Recorder
    readiness: Readiness
    use_cases: UseCases


@asynccontextmanager
async def api_client(
    model: StreamingModel,
    settings: Settings | None = None,
    *,
    docs: bool = True,
    body_bytes_max: int = BODY_BYTES_MAX,
    request_seconds: float = 20,
    turn_deadline_seconds: float = 5.0,
    import_seconds: float = 60,
    unread_seconds: float = 30,
    tracer: Tracer | None = None,
) -> AsyncGenerator[Client]:
    recorder, clock = Recorder(), SystemClock()
    chosen = msgspec.structs.replace(
        settings or Settings(store="memory"),
        openai_model="default-model",
        message_bytes_max=MESSAGE_BYTES_MAX,
        turn_deadline_seconds=turn_deadline_seconds,
    )
    async with (
        open_store(chosen, clock=clock, observer=recorder) as store,
        running_use_cases(chosen, store, model, clock=clock, observer=recorder) as use_cases,
    ):
        readiness = Readiness(store.dependencies)
        app = create_app(
            use_cases,
            readiness,
            ApiSettings(
                version="1",
                body_bytes_max=body_bytes_max,
                request_seconds=request_seconds,
                docs=docs,
                import_seconds=import_seconds,
                unread_seconds=unread_seconds,
            ),
            recorder,
            tracer,
        )
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)  # pyright: ignore[reportArgumentType]  # Litestar's ASGI types
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            yield Client(http, recorder, readiness, use_cases)


def problem(response, status: int, code: str, field: str | None = None) -> dict[str, Any]:
    """Checks that the answer is the problem, whole and well formed."""
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert (response.status_code, body["status"], body["code"]) == (status, status, code), body
    assert body["trace_id"] == response.headers["x-request-id"]
    assert body["type"] == f"urn:chat-memory:problem:{code}"
    assert body["title"]
    assert body["detail"]
    assert response.headers["x-should-retry"] in {"true", "false"}
    if field is not None:
        assert [error["field"] for error in body["errors"]] == [field], body
    return body
