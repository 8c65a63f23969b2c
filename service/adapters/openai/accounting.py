"""What each call came to: told to the observer, and in its span.

Names are those of OpenTelemetry's GenAI conventions (semantic conventions 1.41). No message text.
"""

from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from service.adapters.openai.client import DEFAULT_BASE_URL, ModelSettings, Sending
from service.adapters.openai.listening import Call
from service.domain.observations import ModelCalled
from service.domain.turns import Answer, Delta
from service.ports import Clock, Observer

OPERATION: Final = "chat"
PORTS: Final[Mapping[str, int]] = {"http": 80, "https": 443}
OUTPUT_TYPES: Final[Mapping[str, str]] = {
    "text": "text",
    "json_object": "json",
    "json_schema": "json",
}

# Not the process' choice of propagators: a caller's baggage is no matter of the model's server.
_w3c: Final = TraceContextTextMapPropagator()


class Account:
    """One call's, from its begin to its end; whoever opens it closes it."""

    def __init__(self, call: Call, span: Span, observer: Observer, clock: Clock) -> None:
        headers: dict[str, str] = {}
        _w3c.inject(headers, trace.set_span_in_context(span))
        self.sending = Sending(headers)
        self.outcome = "internal"
        self._model = call.prompt.model
        self._span = span
        self._observer = observer
        self._clock = clock
        self._started = clock.monotonic()
        self._first_piece: float | None = None
        self._answer: Answer | None = None

    def take(self, piece: Delta | Answer) -> None:
        if isinstance(piece, Answer):
            self.outcome, self._answer = "ok", piece
        elif self._first_piece is None:
            self._first_piece = self._clock.monotonic() - self._started

    def close(self) -> None:
        usage = self._answer.usage if self._answer else None
        self._observer.observe(
            ModelCalled(
                model=self._model,
                outcome=self.outcome,
                seconds=self._clock.monotonic() - self._started,
                input_tokens=usage.input_tokens if usage else 0,
                output_tokens=usage.output_tokens if usage else 0,
                first_piece_seconds=self._first_piece,
                retries=self.sending.retries,
            )
        )
        if self._span.is_recording():
            self._span.set_attributes(self._ended())
            if self.outcome != "ok":
                self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()

    def _ended(self) -> dict[str, AttributeValue]:
        attributes: dict[str, AttributeValue | None] = {
            "error.type": self.outcome if self.outcome != "ok" else None,
            "http.request.resend_count": self.sending.retries or None,
            "gen_ai.response.time_to_first_chunk": self._first_piece,
        }
        if (answer := self._answer) is not None:
            usage, reason = answer.usage, answer.finish_reason
            attributes |= {
                "gen_ai.response.model": answer.model,
                "gen_ai.response.finish_reasons": (reason,) if reason else None,
                # Zero: the server did not count.
                "gen_ai.usage.input_tokens": usage.input_tokens or None,
                "gen_ai.usage.output_tokens": usage.output_tokens or None,
                "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens or None,
                "gen_ai.usage.reasoning.output_tokens": usage.reasoning_tokens or None,
            }
        return _without_none(attributes)


class Accounts:
    """Opens an account for each call, and its span as the child of the current one."""

    def __init__(
        self, settings: ModelSettings, tracer: Tracer, observer: Observer, clock: Clock
    ) -> None:
        self._tracer = tracer
        self._observer = observer
        self._clock = clock
        self._server: dict[str, AttributeValue | None] = {
            "gen_ai.operation.name": OPERATION,
            # Of the wire format; whose server it is, its address tells.
            "gen_ai.provider.name": "openai",
            "openai.api.type": settings.api,
            **_address(settings.base_url or DEFAULT_BASE_URL),
        }

    def open(self, call: Call) -> Account:
        span = self._tracer.start_span(
            f"{OPERATION} {call.prompt.model}",
            kind=SpanKind.CLIENT,
            attributes=self._asked(call),
        )
        return Account(call, span, self._observer, self._clock)

    def _asked(self, call: Call) -> dict[str, AttributeValue]:
        prompt = call.prompt
        output = OUTPUT_TYPES.get(str((prompt.response_format or {}).get("type")))
        return _without_none(
            self._server
            | {
                "gen_ai.request.model": prompt.model,
                "gen_ai.request.stream": call.streamed or None,
                "gen_ai.request.temperature": prompt.temperature,
                "gen_ai.request.max_tokens": prompt.max_output_tokens,
                "gen_ai.output.type": output,
            }
        )


def _address(url: str) -> dict[str, AttributeValue | None]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or PORTS.get(parts.scheme)
    except ValueError:
        # Whoever asks there is told so.
        return {}
    return {"server.address": host, "server.port": port} if host else {}


def _without_none(attributes: Mapping[str, AttributeValue | None]) -> dict[str, AttributeValue]:
    return {name: value for name, value in attributes.items() if value is not None}
