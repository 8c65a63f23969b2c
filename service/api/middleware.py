"""What every request passes before and after the application."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any, Final

import structlog
from litestar.types import ASGIApp, Message, Receive, Scope, Send
from opentelemetry.trace import NoOpTracer, Tracer

from service.api.problems import cut_off_answer
from service.api.tracing import TRACE_KEY, RequestTrace
from service.domain.errors import Overloaded
from service.domain.observations import RequestServed
from service.ports import Observer

SECURITY_HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
)
UNROUTED: Final = "unrouted"
NOWHERE: Final = "/%"
"""A path that no route has, for the router skips empty segments."""

log = structlog.stdlib.get_logger("chat_memory.access")


TURN: Final = {"turn": True}
"""Marks a handler whose time the turn's own deadline bounds, and where it streams each part its
reader's."""

IMPORT: Final = {"import": True}
"""Marks a handler that takes as long as its body comes, within a bound of its own."""
STREAM: Final = {"stream": True}
"""Marks a handler whose answer takes as long as its reader; it ends where nobody reads."""


class Deadline:
    """Bounds the time of every request that is no turn, and of a stream that of each part."""

    def __init__(
        self,
        app: ASGIApp,
        seconds: float,
        import_seconds: float,
        unread_seconds: float,
    ) -> None:
        self._app = app
        self._seconds = seconds
        self._import_seconds = import_seconds
        self._unread_seconds = unread_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        marks = scope["route_handler"].opt
        if marks.get("turn") or marks.get("stream"):
            await self._app(scope, receive, self._impatient(send))
            return
        seconds = self._import_seconds if marks.get("import") else self._seconds
        try:
            async with asyncio.timeout(seconds):
                await self._app(scope, receive, send)
        except TimeoutError as error:
            raise Overloaded(f"The request took longer than {seconds:g} s.") from error

    def _impatient(self, send: Send) -> Send:
        async def bounded(message: Message) -> None:
            async with asyncio.timeout(self._unread_seconds):
                await send(message)

        return bounded


class Edge:
    """The outermost ASGI application: names the request, takes its time, keeps its path raw.

    Servers decode the path before routing, which would make ``%2F`` in an id a separator. Routing
    here is on the raw path; a handler decodes its parameters once.
    """

    def __init__(
        self,
        app: ASGIApp,
        observer: Observer,
        *,
        logs_access: bool,
        methods: Mapping[str, str] | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self._app = app
        self._methods = methods or {}
        self._observer = observer
        self._logs_access = logs_access
        self._tracer = tracer or NoOpTracer()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        await self._serve(scope, receive, send)

    async def _serve(self, scope: Any, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        trace = RequestTrace(self._tracer, scope)
        trace_id = scope[TRACE_KEY] = trace.trace_id
        raw_path = scope.get("raw_path")
        if raw_path:
            scope["path"] = _routed_path(raw_path.partition(b"?")[0].decode("latin-1"))
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(trace_id=trace_id)
        status = 500
        answered = False

        async def note(message: Message) -> None:
            nonlocal status, answered
            if message["type"] == "http.response.start":
                answered = True
                status = message["status"]
                own = (*SECURITY_HEADERS, (b"x-request-id", trace_id.encode()))
                given = {name for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *(pair for pair in own if pair[0] not in given),
                ]
                self._correct_allow(scope, message)
            await send(message)

        try:
            await self._app(scope, receive, note)
        except asyncio.CancelledError:
            # The server cancels what is in flight at the end of its grace time.
            if answered:
                raise
            for message in cut_off_answer(trace_id):
                await note(message)
        finally:
            self._note(scope, trace, status, time.perf_counter() - started)

    def _correct_allow(self, scope: Any, message: Any) -> None:
        allowed = self._methods.get(scope.get("path_template", ""))
        if scope["method"] == "OPTIONS" and allowed is not None:
            rest = [pair for pair in message["headers"] if pair[0].lower() != b"allow"]
            message["headers"] = [*rest, (b"allow", allowed.encode())]

    def _note(self, scope: Any, trace: RequestTrace, status: int, seconds: float) -> None:
        # Litestar leaves the route's template behind; a path itself may name people.
        route = scope.get("path_template") or UNROUTED
        trace.end(scope.get("path_template") or None, status)
        method = scope["method"] if route != UNROUTED else "*"
        self._observer.observe(
            RequestServed(method=method, route=route, status=status, seconds=seconds)
        )
        if self._logs_access:
            log.info(
                "request",
                method=method,
                route=route,
                status=status,
                milliseconds=round(seconds * 1000, 2),
            )


def _routed_path(raw: str) -> str:
    """Without this, clearing the session with the empty id would clear the session "messages"."""
    return NOWHERE if "//" in raw or raw.endswith("/") else raw
