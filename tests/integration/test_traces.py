"""A trace's way through the service: HTTP in, the turn, the model out; over real sockets."""

import asyncio
import json
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode

from service.api.server import Listener, ServiceServer
from tests.support.api import api_client
from tests.support.model_server import DONE, ModelServer, Reply, chunk
from tests.support.openai_models import model_of
from tests.support.polling import eventually
from tests.support.processes import service
from tests.support.scripted_model import ScriptedModel
from tests.support.spans import Spans, attributes, parent_id, traceparent
from tests.support.stores import Recorder

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{CALLER}-01"
QUESTION = "the planted question"


class Way(msgspec.Struct):
    """The service between a caller and its model."""

    http: httpx.AsyncClient
    model_server: ModelServer

    async def ask(self, **headers: str) -> httpx.Response:
        body = {"user_id": "planted-user", "message": QUESTION}
        return await self.http.post("/chat", json=body, headers=headers)

    def sent(self, name: str) -> list[str | None]:
        """A header of each request to the model."""
        return [headers.get(name) for headers in self.model_server.headers]


@asynccontextmanager
async def way_of(spans: Spans | None) -> AsyncGenerator[Way]:
    tracer = spans.tracer if spans else None
    async with (
        ModelServer() as model_server,
        model_of(Recorder(), tracer=tracer, base_url=model_server.base_url, max_retries=0) as model,
        api_client(model, tracer=tracer) as client,
    ):
        transport: Any = client.http._transport
        server = ServiceServer(
            [Listener(app=transport.app, host="127.0.0.1", port=0)],
            drain=client.readiness.drain,
            grace_seconds=1,
        )
        started = asyncio.Event()
        serving = asyncio.create_task(server.serve(started=started.set))
        await started.wait()
        try:
            async with httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{server.ports[0]}", trust_env=False
            ) as http:
                yield Way(http, model_server)
        finally:
            server.stop()
            await asyncio.wait_for(serving, 10)


@pytest.fixture
def spans() -> Spans:
    return Spans()


@pytest.fixture
async def way(spans) -> AsyncGenerator[Way]:
    async with way_of(spans) as way:
        yield way


@pytest.fixture
async def untraced() -> AsyncGenerator[Way]:
    async with way_of(None) as way:
        yield way


async def ended(spans: Spans, count: int) -> None:
    """A request's span ends after its answer has gone out."""
    await eventually(lambda: len(spans.ended()) == count, within_seconds=5)


# --- With an SDK ----------------------------------------------------------------------------------


async def test_a_turns_call_is_the_child_of_the_request_which_is_the_callers(way, spans):
    response = await way.ask(traceparent=PARENT, tracestate="a=1,b=2")
    assert response.status_code == 200
    await ended(spans, 2)
    served, called = spans.one(SpanKind.SERVER), spans.one(SpanKind.CLIENT)

    assert parent_id(served) == CALLER
    assert parent_id(called) == traceparent(served).split("-")[2]
    assert way.sent("traceparent") == [traceparent(called)]
    assert way.sent("tracestate") == ["a=1,b=2"]
    assert traceparent(called).split("-")[1] == response.headers["x-request-id"] == TRACE


async def test_a_request_has_a_span_that_names_its_route_and_not_its_path(way, spans):
    await way.ask()
    await way.http.get("/history/planted-user?limit=3")
    await ended(spans, 3)
    asked, read = spans.ended(SpanKind.SERVER)
    assert (asked.name, read.name) == ("POST /chat", "GET /history/{session_id}")
    assert attributes(read) == {
        "http.request.method": "GET",
        "url.scheme": "http",
        "network.protocol.version": "1.1",
        "http.route": "/history/{session_id}",
        "http.response.status_code": 200,
    }
    assert (read.status.status_code, read.events) == (StatusCode.UNSET, ())
    assert "planted" not in spans.told()


async def test_a_request_without_a_route_has_a_span_without_one(way, spans):
    await way.http.get("/planted-path")
    await way.http.request("PROPFIND", "/planted-path")
    await ended(spans, 2)
    known, other = spans.ended()
    assert (known.name, other.name) == ("GET", "HTTP")
    assert attributes(other)["http.request.method"] == "_OTHER"
    assert "http.route" not in attributes(known)
    assert attributes(known)["http.response.status_code"] == 404
    assert known.status.status_code is StatusCode.UNSET
    assert "planted" not in spans.told()


async def test_a_failed_turn_is_an_error_of_both(way, spans):
    way.model_server.script(Reply(status=500))
    response = await way.ask()
    await ended(spans, 2)
    served, called = spans.one(SpanKind.SERVER), spans.one(SpanKind.CLIENT)
    assert attributes(served)["error.type"] == str(response.status_code)
    assert response.status_code >= 500
    assert attributes(called)["error.type"] == "model_error"
    assert served.status.status_code is called.status.status_code is StatusCode.ERROR


async def test_a_turn_whose_caller_has_left_stays_in_its_trace(way, spans):
    gate = asyncio.Event()
    steps = [chunk(content="one"), gate, chunk(content=" two"), chunk("stop"), DONE]
    way.model_server.script(Reply(steps=steps))
    body = {"user_id": "u", "message": QUESTION, "stream": True}
    headers = {"traceparent": PARENT}
    async with way.http.stream("POST", "/chat", json=body, headers=headers) as response:
        lines = response.aiter_lines()
        while "one" not in await anext(lines):
            pass
    await ended(spans, 1)
    served = spans.one()
    gate.set()
    await ended(spans, 2)
    called = spans.one(SpanKind.CLIENT)
    assert parent_id(called) == traceparent(served).split("-")[2]
    assert "error.type" not in attributes(called)


async def test_a_connection_keeps_no_trace_for_its_next_request(way, spans):
    await way.ask(traceparent=PARENT)
    response = await way.ask()
    await ended(spans, 4)
    _, second = spans.ended(SpanKind.SERVER)
    assert second.parent is None
    # Problems and logs are found by the trace that is exported.
    assert response.headers["x-request-id"] == traceparent(second).split("-")[1] != TRACE


async def test_a_trace_that_is_not_sampled_stays_so(way, spans):
    await way.ask(traceparent=f"00-{TRACE}-{CALLER}-00")
    await way.ask()
    # Two of the second request: the first has none.
    await ended(spans, 2)
    first, _ = way.sent("traceparent")
    assert first is not None
    assert first.startswith(f"00-{TRACE}-")
    assert first.endswith("-00")


# --- Without one ----------------------------------------------------------------------------------


async def test_the_callers_trace_is_passed_on(untraced):
    headers = {"traceparent": PARENT, "tracestate": "a=1", "baggage": "planted=1"}
    response = await untraced.ask(**headers)
    assert response.headers["x-request-id"] == TRACE
    assert untraced.sent("traceparent") == [PARENT]
    assert untraced.sent("tracestate") == ["a=1"]
    assert untraced.sent("baggage") == [None]


async def test_a_trace_of_a_later_version_is_read_as_far_as_it_is_known(untraced):
    await untraced.ask(traceparent=f"cc-{TRACE}-{CALLER}-01-what-comes-later")
    assert untraced.sent("traceparent") == [PARENT]


@pytest.mark.parametrize(
    "value",
    [
        "",
        "00-xyz",
        f"00-{TRACE}-{CALLER}",
        f"00-{TRACE}-{CALLER}-01-more",
        f"00-{TRACE.upper()}-{CALLER}-01",
        f"00-{'0' * 32}-{CALLER}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{CALLER}-01",
    ],
)
async def test_a_trace_that_is_none_is_ignored(untraced, value):
    response = await untraced.ask(traceparent=value, tracestate="a=1")
    assert response.status_code == 200
    assert len(response.headers["x-request-id"]) == 32
    assert response.headers["x-request-id"] != TRACE
    assert untraced.sent("traceparent") == untraced.sent("tracestate") == [None]


async def test_two_traces_are_none_and_two_states_are_one(untraced):
    body = {"user_id": "u", "message": QUESTION}
    for headers in (
        [("traceparent", PARENT), ("traceparent", PARENT)],
        [("traceparent", f"cc-{TRACE}-{CALLER}-01-"), ("traceparent", f"cc-{TRACE}-{CALLER}-01-")],
        [("traceparent", PARENT), ("tracestate", "a=1"), ("tracestate", "b=2")],
    ):
        await untraced.http.post("/chat", json=body, headers=headers)
    assert untraced.sent("traceparent") == [None, None, PARENT]
    assert untraced.sent("tracestate") == [None, None, "a=1,b=2"]


async def test_a_trace_ends_with_its_request():
    async with api_client(ScriptedModel()) as client:
        await client.http.get("/health/live", headers={"traceparent": PARENT})
    assert not trace.get_current_span().get_span_context().is_valid


# --- A process of its own -------------------------------------------------------------------------

# What `opentelemetry-instrument` does: the SDK is there before the service is imported.
SDK = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

provider = TracerProvider()
out = open({path!r}, "w")
exporter = ConsoleSpanExporter(out=out, formatter=lambda span: span.to_json(indent=None) + "\\n")
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
"""


async def test_a_process_that_is_started_with_an_sdk_tells_its_spans(tmp_path: Path):
    told = tmp_path / "spans"
    (tmp_path / "sitecustomize.py").write_text(SDK.format(path=str(told)), "utf-8")
    async with ModelServer() as model_server:
        environment = {
            "PYTHONPATH": str(tmp_path),
            "STORE": "memory",
            "OPENAI_API_KEY": "key",
            "OPENAI_BASE_URL": model_server.base_url,
            "OPENAI_MODEL": "m",
        }
        async with (
            service("serve", environment=environment, folder=tmp_path) as process,
            httpx.AsyncClient(trust_env=False) as http,
        ):
            await process.until_ready()
            body = {"user_id": "planted-user", "message": QUESTION}
            await http.post(f"{process.url}/chat", json=body, headers={"traceparent": PARENT})
            metrics = (await http.get(f"{process.ops_url}/metrics")).text
            process.send(signal.SIGTERM)
            assert await process.ended() == 0

    lines = told.read_text("utf-8").splitlines()
    # Probes and scrapes have no spans.
    called, served = map(json.loads, lines)
    assert (called["name"], served["name"]) == ("chat m", "POST /chat")
    assert served["parent_id"] == f"0x{CALLER}"
    assert called["parent_id"] == served["context"]["span_id"]
    [sent] = [headers["traceparent"] for headers in model_server.headers]
    assert sent == f"00-{TRACE}-{called['context']['span_id'][2:]}-01"
    assert 'gen_ai_request_model="m",gen_ai_token_type="output"' in metrics
    assert "planted" not in "".join(lines) + metrics + process.log.read_text("utf-8")


@pytest.mark.parametrize("traced", [True, False])
async def test_requests_in_one_pipeline_have_traces_of_their_own(traced):
    async with way_of(Spans() if traced else None) as way:
        reader, writer = await asyncio.open_connection(
            way.http.base_url.host, way.http.base_url.port
        )
        del reader
        for user, headers in (("u1", f"traceparent: {PARENT}\r\ntracestate: a=1\r\n"), ("u2", "")):
            body = msgspec.json.encode({"user_id": user, "message": "hi"})
            head = (
                "POST /chat HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\n{headers}\r\n"
            )
            writer.write(head.encode() + body)
        await writer.drain()
        await eventually(lambda: len(way.model_server.headers) == 2, within_seconds=5)
        first, second = way.model_server.headers
        assert PARENT.split("-")[1] in first["traceparent"]
        assert PARENT.split("-")[1] not in second.get("traceparent", "")
        assert "tracestate" not in second
        writer.close()
