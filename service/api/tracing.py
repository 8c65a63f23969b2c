"""Traces of requests (W3C Trace Context): a name for problems and logs, and a server's span.

Spans have the names of OpenTelemetry's HTTP conventions, but for ``url.path``: ids are in it.
"""

import secrets
from collections.abc import Iterable
from http import HTTPMethod, HTTPStatus
from typing import Any, Final

from opentelemetry import context, trace
from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

TRACE_KEY: Final = "chat_memory_trace_id"
TRACE_HEADERS: Final = (b"traceparent", b"tracestate")
METHODS: Final = frozenset(HTTPMethod)

# Not the process' choice of propagators: what else a caller sends is not passed on.
_w3c: Final = TraceContextTextMapPropagator()


class RequestTrace:
    """The span of a request, current until its end; records where an SDK is set up.

    Without one, what the request asks of others is in the trace of its caller. A request that has
    no trace gets an id for logs and problems alone: to pass it on would decide for those others
    that they do not sample.
    """

    def __init__(self, tracer: Tracer, scope: Any) -> None:
        self._method = scope["method"] if scope["method"] in METHODS else "_OTHER"
        self._span = tracer.start_span(
            self._name(None),
            context=_callers(scope["headers"]),
            kind=SpanKind.SERVER,
            attributes={
                "http.request.method": self._method,
                "url.scheme": scope.get("scheme", "http"),
                "network.protocol.version": scope["http_version"],
            },
        )
        found = self._span.get_span_context()
        self.trace_id = trace.format_trace_id(found.trace_id) if found.is_valid else new_trace_id()
        # Also where there is none: a server may run this in the context of the request before it.
        none = context.Context()
        own = trace.set_span_in_context(self._span, none) if found.is_valid else none
        self._token = context.attach(own)

    def end(self, route: str | None, status: int) -> None:
        """``route`` is the template, None where the request has none."""
        context.detach(self._token)
        if self._span.is_recording():
            self._span.update_name(self._name(route))
            self._span.set_attribute("http.response.status_code", status)
            if route is not None:
                self._span.set_attribute("http.route", route)
            if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                self._span.set_attribute("error.type", str(status))
                self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()

    def _name(self, route: str | None) -> str:
        method = "HTTP" if self._method == "_OTHER" else self._method
        return method if route is None else f"{method} {route}"


def new_trace_id() -> str:
    return secrets.token_hex(16)


def trace_id_of(scope: Any) -> str:
    """The trace id of a request; the middleware gave it one."""
    return scope.get(TRACE_KEY, "")


def _callers(headers: Iterable[tuple[bytes, bytes]]) -> context.Context:
    """The trace that the caller is in; none where its headers are not as they must be."""
    found: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        if name in TRACE_HEADERS:
            found.setdefault(name, []).append(value)
    if len(found.get(b"traceparent", ())) != 1:
        return context.Context()
    carrier = {name.decode(): b",".join(values).decode("latin-1") for name, values in found.items()}
    return _w3c.extract(carrier, context.Context())
