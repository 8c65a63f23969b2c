"""Spans kept in this process by the real SDK, whose provider is nobody else's."""

from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, format_span_id, format_trace_id


class Spans:
    """A tracer, and the spans of it that have ended."""

    def __init__(self) -> None:
        self._kept = InMemorySpanExporter()
        provider = TracerProvider(resource=Resource({}), shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._kept))
        self.tracer = provider.get_tracer("test")

    def ended(self, kind: SpanKind | None = None) -> list[ReadableSpan]:
        return [span for span in self._kept.get_finished_spans() if kind in {None, span.kind}]

    def one(self, kind: SpanKind | None = None) -> ReadableSpan:
        [span] = self.ended(kind)
        return span

    def told(self) -> str:
        """All that is said of all spans, resources and statuses included."""
        return "\n".join(span.to_json() for span in self.ended())


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def traceparent(span: ReadableSpan) -> str:
    """As W3C Trace Context writes it."""
    found = span.context
    assert found is not None
    trace_id, span_id = format_trace_id(found.trace_id), format_span_id(found.span_id)
    return f"00-{trace_id}-{span_id}-{found.trace_flags:02x}"


def parent_id(span: ReadableSpan) -> str | None:
    return None if span.parent is None else format_span_id(span.parent.span_id)
