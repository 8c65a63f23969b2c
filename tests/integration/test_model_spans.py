"""A span for each call of a model, by OpenTelemetry's GenAI conventions, and never a word of it."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest
from opentelemetry import context, trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, StatusCode, TraceFlags

from service.adapters.openai.model import OpenAIModel
from service.domain.errors import ChatMemoryError, ModelUnavailable
from service.domain.observations import ModelCalled
from tests.support.clocks import HandClock
from tests.support.model_server import DONE, ModelServer, Reply, chunk
from tests.support.openai_models import KEY, PROMPT, QUESTION, model_of
from tests.support.polling import eventually
from tests.support.spans import Spans, attributes, traceparent
from tests.support.stores import Recorder

ANSWER = "the planted answer"
NOW = {"retry-after-ms": "1"}
USAGE = {
    "prompt_tokens": 11,
    "completion_tokens": 5,
    "total_tokens": 16,
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 2},
}


@pytest.fixture
async def server() -> AsyncGenerator[ModelServer]:
    async with ModelServer() as server:
        yield server


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def spans() -> Spans:
    return Spans()


@pytest.fixture
async def model(server, recorder, spans) -> AsyncGenerator[OpenAIModel]:
    async with model_of(recorder, HandClock(), spans.tracer, base_url=server.base_url) as model:
        yield model


async def streamed(model, prompt=PROMPT, seconds: float = 5) -> None:
    async with aclosing(model.stream(prompt, deadline_seconds=seconds)) as pieces:
        async for _ in pieces:
            pass


async def plain(model, prompt=PROMPT, seconds: float = 5) -> None:
    await model.answer(prompt, deadline_seconds=seconds)


both_ways = pytest.mark.parametrize("ask", [plain, streamed])


def of_server(server: ModelServer) -> dict[str, Any]:
    """What every span of a call there says."""
    return {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "openai.api.type": "chat_completions",
        "server.address": "127.0.0.1",
        "server.port": urlsplit(server.base_url).port,
        "gen_ai.request.model": "m",
    }


ANSWERED = {
    "gen_ai.response.model": "m",
    "gen_ai.response.finish_reasons": ("stop",),
    "gen_ai.usage.input_tokens": 11,
    "gen_ai.usage.output_tokens": 5,
    "gen_ai.usage.cache_read.input_tokens": 4,
    "gen_ai.usage.reasoning.output_tokens": 2,
}


async def test_an_answer_has_a_span(model, server, spans):
    server.script(Reply(text=ANSWER, usage=USAGE))
    await plain(model)
    span = spans.one()
    assert (span.name, span.kind) == ("chat m", SpanKind.CLIENT)
    assert span.status.status_code is StatusCode.UNSET
    assert (span.parent, span.events) == (None, ())
    assert attributes(span) == of_server(server) | ANSWERED


async def test_a_streamed_answer_has_one_with_the_time_of_its_first_chunk(model, server, spans):
    server.script(Reply(text=ANSWER, usage=USAGE))
    await streamed(model)
    assert attributes(spans.one()) == of_server(server) | ANSWERED | {
        "gen_ai.request.stream": True,
        "gen_ai.response.time_to_first_chunk": 0.0,
    }


async def test_what_the_caller_chose_is_told(model, server, spans):
    tool = {"type": "function", "function": {"name": "planted", "parameters": {}}}
    prompt = msgspec.structs.replace(
        PROMPT,
        temperature=0.5,
        max_output_tokens=9,
        tools=[tool],
        response_format={"type": "json_schema", "json_schema": {"name": "planted"}},
    )
    await plain(model, prompt)
    told = attributes(spans.one())
    assert told["gen_ai.request.temperature"] == 0.5
    assert told["gen_ai.request.max_tokens"] == 9
    assert told["gen_ai.output.type"] == "json"
    assert "planted" not in spans.told()


@pytest.mark.parametrize(
    ("status", "reason", "told"),
    [
        ("completed", None, ("stop",)),
        ("incomplete", "max_output_tokens", ("length",)),
        ("incomplete", "planted", None),
    ],
)
async def test_the_other_wire_format_tells_the_same(server, spans, status, reason, told):
    text = {"type": "output_text", "text": ANSWER}
    said = {
        "status": status,
        "incomplete_details": {"reason": reason},
        "output": [{"type": "message", "content": [text]}],
        "model": "m",
        "usage": {"input_tokens": 11, "output_tokens": 5},
    }
    server.script(Reply(body=msgspec.json.encode(said)))
    async with model_of(
        Recorder(), tracer=spans.tracer, base_url=server.base_url, api="responses"
    ) as model:
        await plain(model)
    found = attributes(spans.one())
    assert found["openai.api.type"] == "responses"
    assert found.get("gen_ai.response.finish_reasons") == told
    assert "planted" not in spans.told()


@both_ways
@pytest.mark.parametrize(
    ("replies", "kind", "retries"),
    [
        ([Reply(status=500, headers=NOW)] * 2, "model_error", 1),
        ([Reply(status=429, headers=NOW)] * 2, "model_unavailable", 1),
        ([Reply(text=ANSWER, drop="before_headers")] * 2, "model_unavailable", 1),
        ([Reply(body=b"planted")] * 2, "model_error", 1),
        ([Reply(status=400)], "model_error", 0),
        ([Reply(until=asyncio.Event())], "model_timeout", 0),
    ],
)
async def test_a_failed_call_has_a_span(
    model, server, spans, recorder, ask, replies, kind, retries
):
    server.script(*replies)
    with pytest.raises(ChatMemoryError):
        await ask(model, seconds=0.4 if kind == "model_timeout" else 5)

    span, [call] = spans.one(), recorder.of(ModelCalled)
    expected = of_server(server) | {"error.type": kind}
    if retries:
        expected["http.request.resend_count"] = retries
    if ask is streamed:
        expected["gen_ai.request.stream"] = True
    assert attributes(span) == expected
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, None)
    assert (call.outcome, call.retries) == (kind, retries)
    assert len(server.requests) == retries + 1


@both_ways
async def test_a_call_that_needed_a_retry_has_one_span(model, server, spans, ask):
    server.script(Reply(status=503, headers=NOW), Reply(text=ANSWER, usage=USAGE))
    await ask(model)
    span = spans.one()
    assert span.status.status_code is StatusCode.UNSET
    assert attributes(span)["http.request.resend_count"] == 1
    assert [headers["traceparent"] for headers in server.headers] == [traceparent(span)] * 2


async def test_an_answer_that_broke_and_was_asked_for_again_is_a_retry(model, server, spans):
    server.script(Reply(steps=[chunk(content=""), "break"]), Reply(text=ANSWER))
    await streamed(model)
    assert attributes(spans.one())["http.request.resend_count"] == 1
    assert [headers["traceparent"] for headers in server.headers] == [traceparent(spans.one())] * 2


async def test_a_redirect_is_no_retry(model, server, spans, recorder):
    server.script(Reply(status=307, headers={"location": "/v1/chat/completions"}))
    await plain(model)
    assert len(server.requests) == 2
    assert "http.request.resend_count" not in attributes(spans.one())
    assert [call.retries for call in recorder.of(ModelCalled)] == [0]


async def test_a_cancelled_call_has_a_span(model, server, spans):
    server.script(Reply(text=ANSWER, until=asyncio.Event()))
    asking = asyncio.create_task(plain(model))
    await eventually(lambda: len(server.requests) == 1, within_seconds=2)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert attributes(spans.one()) == of_server(server) | {"error.type": "cancelled"}


async def test_a_stream_that_is_left_has_a_span(model, server, spans):
    server.script(Reply(steps=[chunk(content=ANSWER), asyncio.Event()]))
    async with aclosing(model.stream(PROMPT, deadline_seconds=5)) as pieces:
        await anext(pieces)
    assert attributes(spans.one()) == of_server(server) | {
        "gen_ai.request.stream": True,
        "gen_ai.response.time_to_first_chunk": 0.0,
        "error.type": "cancelled",
    }


async def test_each_model_that_is_asked_has_a_span_and_one_that_is_left_alone_has_none(
    server, spans
):
    down = Reply(status=500)
    server.script(down, Reply(text=ANSWER), Reply(text=ANSWER))
    async with model_of(
        Recorder(),
        tracer=spans.tracer,
        base_url=server.base_url,
        max_retries=0,
        breaker_failures=1,
        fallback_models=("other",),
    ) as model:
        await plain(model)
        await plain(model)
    told = [(span.name, attributes(span).get("error.type")) for span in spans.ended()]
    assert told == [("chat m", "model_error"), ("chat other", None), ("chat other", None)]
    sent = [headers["traceparent"] for headers in server.headers]
    assert sent == [traceparent(span) for span in spans.ended()]


@both_ways
async def test_nothing_that_was_said_is_in_a_span(model, server, spans, ask):
    planted = {"error": {"message": QUESTION, "type": ANSWER, "code": KEY}}
    server.script(
        Reply(text=ANSWER, usage=USAGE),
        Reply(text=ANSWER, finish_reason=ANSWER),
        Reply(status=400, body=msgspec.json.encode(planted)),
        Reply(steps=[b"data: " + msgspec.json.encode(planted) + b"\n\n", DONE], status=200),
    )
    for _ in range(4):
        await asyncio.gather(ask(model), return_exceptions=True)
    assert len(spans.ended()) == 4
    for text in (QUESTION, ANSWER, KEY, "planted"):
        assert text not in spans.told()


# --- Without an SDK -------------------------------------------------------------------------------


async def asked_within(model: OpenAIModel, found: SpanContext) -> None:
    token = context.attach(trace.set_span_in_context(NonRecordingSpan(found)))
    try:
        await plain(model)
    finally:
        context.detach(token)


async def test_without_an_sdk_the_callers_trace_is_passed_on(server):
    found = SpanContext(trace_id=1, span_id=2, is_remote=True, trace_flags=TraceFlags(1))
    async with model_of(Recorder(), base_url=server.base_url) as model:
        await asked_within(model, found)
        await plain(model)
    within, alone = server.headers
    assert within["traceparent"] == f"00-{1:032x}-{2:016x}-01"
    assert "traceparent" not in alone


@pytest.mark.parametrize(
    ("url", "address", "port"),
    [
        ("https://models.example/v1", "models.example", 443),
        ("http://models.example/v1", "models.example", 80),
        ("http://models.example:99999/v1", None, None),
    ],
)
async def test_the_servers_address_is_that_of_the_settings(spans, url, address, port):
    async with model_of(Recorder(), tracer=spans.tracer, base_url=url) as model:
        await model.close()
        with pytest.raises(ModelUnavailable):
            await plain(model)
    told = attributes(spans.one())
    assert (told.get("server.address"), told.get("server.port")) == (address, port)
