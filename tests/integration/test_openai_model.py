"""The model adapter against a real HTTP server: answers, troubles, budget and deadline."""

import asyncio
import sys
import time
from collections.abc import AsyncGenerator
from email.utils import formatdate
from typing import Any

import msgspec
import pytest

from service.adapters.openai.chat_completions import ChatCompletions
from service.adapters.openai.model import NoModel, OpenAIModel
from service.domain.errors import (
    ChatMemoryError,
    ContextTooLarge,
    ModelError,
    ModelTimeout,
    ModelUnavailable,
)
from service.domain.observations import ModelCalled
from service.domain.turns import Answer, Prompt, Usage
from tests.support.model_server import ModelServer, Reply
from tests.support.openai_models import KEY, PROMPT, QUESTION, model_of
from tests.support.polling import eventually
from tests.support.stores import Recorder


@pytest.fixture
async def server() -> AsyncGenerator[ModelServer]:
    async with ModelServer() as server:
        yield server


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
async def model(server: ModelServer, recorder: Recorder) -> AsyncGenerator[OpenAIModel]:
    async with model_of(recorder, base_url=server.base_url) as model:
        yield model


async def ask(model: OpenAIModel, prompt: Prompt = PROMPT, seconds: float = 10):
    return await model.answer(prompt, deadline_seconds=seconds)


async def test_text_and_usage_come_back(model, server, recorder):
    server.script(
        Reply(
            text="réponse 🦉",
            usage={
                "prompt_tokens": 11,
                "completion_tokens": 5,
                "total_tokens": 16,
                "prompt_tokens_details": {"cached_tokens": 4},
                "completion_tokens_details": {"reasoning_tokens": 2, "other": 1},
            },
        )
    )
    answer = await ask(model)

    assert (answer.content, answer.complete, answer.model) == ("réponse 🦉", True, "m")
    assert answer.usage == Usage(
        input_tokens=11, output_tokens=5, total_tokens=16, cached_tokens=4, reasoning_tokens=2
    )
    assert server.requests == [{"model": "m", "messages": [{"role": "user", "content": QUESTION}]}]
    assert [headers["authorization"] for headers in server.headers] == [f"Bearer {KEY}"]
    [call] = recorder.of(ModelCalled)
    assert (call.outcome, call.input_tokens, call.output_tokens) == ("ok", 11, 5)


@pytest.mark.parametrize(
    "usage",
    [
        None,
        "many",
        {"prompt_tokens": -1},
        {"completion_tokens": 2**63},
        {"prompt_tokens": None, "completion_tokens_details": None},
    ],
)
async def test_counts_that_make_no_sense_are_zero(model, server, usage):
    completion = {"choices": [{"message": {"content": "yes"}}], "usage": usage, "new": {"a": 1}}
    server.script(Reply(body=msgspec.json.encode(completion)))
    answer = await ask(model)
    assert (answer.content, answer.usage, answer.model) == ("yes", Usage(), "m")


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("a\0\0b", "a\ufffd\ufffdb"),
        ("\\u0000", "\\u0000"),
        ("\\\0\\\\u0000", "\\\ufffd\\\\u0000"),
    ],
)
async def test_nul_characters_are_replaced_for_postgres_refuses_them(model, server, said, kept):
    calls = [{"id": said, "type": "function", "function": {"name": "f", "arguments": said}}]
    server.script(Reply(text=said, tool_calls=calls))
    answer = await ask(model)
    assert answer.content == kept
    assert answer.tool_calls == [
        {"id": kept, "type": "function", "function": {"name": "f", "arguments": kept}}
    ]


CHOICES = {
    "temperature": 0.0,
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {}}},
}


async def test_choices_of_the_caller_reach_the_model(model, server):
    prompt = msgspec.structs.replace(PROMPT, max_output_tokens=9, **CHOICES)
    await ask(model, prompt)
    [answer] = [
        piece
        async for piece in model.stream(prompt, deadline_seconds=10)
        if isinstance(piece, Answer)
    ]
    assert answer.content == f"echo: {QUESTION}"

    plain, streamed = server.requests
    asked = {"model": "m", "messages": [{"role": "user", "content": QUESTION}]}
    assert plain == asked | CHOICES | {"max_completion_tokens": 9}
    assert streamed == plain | {"stream": True, "stream_options": {"include_usage": True}}


@pytest.mark.parametrize("reason", ["length", "content_filter"])
async def test_a_cut_answer_is_incomplete(model, server, reason):
    server.script(Reply(text="half", finish_reason=reason))
    answer = await ask(model)
    assert (answer.content, answer.complete) == ("half", False)


async def test_a_refusal_is_what_the_model_said(model, server):
    server.script(Reply(message={"role": "assistant", "content": None, "refusal": "I won't."}))
    assert (await ask(model)).content == "I won't."


async def test_tool_calls_are_an_answer(model, server):
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    server.script(Reply(tool_calls=calls, finish_reason="tool_calls"))
    answer = await ask(model)
    assert (answer.content, answer.tool_calls) == (None, calls)


# As llama.cpp's server says it.
LLAMA_CONTEXT = msgspec.json.encode(
    {"error": {"code": 400, "message": QUESTION, "type": "exceed_context_size_error"}}
)


def error(code: Any = None, kind: str | None = None) -> bytes:
    return msgspec.json.encode({"error": {"message": QUESTION, "code": code, "type": kind}})


NOW = {"retry-after-ms": "1"}
DEEP = b'{"choices": [{"message": {"tool_calls": [' + b'{"a":' * 100_000


@pytest.mark.parametrize(
    ("replies", "kind", "retryable", "calls"),
    [
        ([Reply(status=500, headers=NOW)] * 2, ModelError, True, 2),
        ([Reply(status=503, headers=NOW)] * 2, ModelError, True, 2),
        ([Reply(status=429, headers=NOW)] * 2, ModelUnavailable, True, 2),
        ([Reply(status=409, headers=NOW)] * 2, ModelError, True, 2),
        ([Reply(status=408, headers=NOW)] * 2, ModelTimeout, True, 2),
        ([Reply(status=400, body=error("bad_thing"))], ModelError, False, 1),
        ([Reply(status=401, body=error(kind="auth"))], ModelError, False, 1),
        ([Reply(status=403, body=b"<html>")], ModelError, False, 1),
        ([Reply(status=404)], ModelError, False, 1),
        ([Reply(status=422)], ModelError, False, 1),
        ([Reply(status=400, body=error("context_length_exceeded"))], ContextTooLarge, False, 1),
        ([Reply(status=400, body=LLAMA_CONTEXT)], ContextTooLarge, False, 1),
        ([Reply(body=b'{"choices": [{"mess')] * 2, ModelError, True, 2),
        ([Reply(body=b'{"choices": []}')] * 2, ModelError, True, 2),
        ([Reply(body=b"\xff")] * 2, ModelError, True, 2),
        ([Reply(body=b"null")] * 2, ModelError, True, 2),
        ([Reply(body=b"")] * 2, ModelError, True, 2),
        ([Reply(body=b"<html>planted</html>")] * 2, ModelError, True, 2),
        ([Reply(body=DEEP)] * 2, ModelError, True, 2),
        ([Reply(message={"role": "assistant", "content": ""})] * 2, ModelError, True, 2),
    ],
)
async def test_each_trouble_has_its_error(model, server, recorder, replies, kind, retryable, calls):
    server.script(*replies)
    with pytest.raises(ChatMemoryError) as caught:
        await ask(model)

    assert type(caught.value) is kind
    assert caught.value.may_retry is retryable
    assert len(server.requests) == calls
    assert KEY not in repr(caught.value)
    assert "planted" not in repr(caught.value)
    assert server.base_url not in repr(caught.value)
    assert [call.outcome for call in recorder.of(ModelCalled)] == [kind.code]


async def test_a_passing_trouble_is_retried_within_the_budget(model, server):
    server.script(Reply(status=500, headers=NOW))
    assert (await ask(model)).content == f"echo: {QUESTION}"
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (error("model_not_found", "invalid_request_error"), "status 404, model_not_found."),
        (error(404, "BadRequestError"), "status 404, badrequesterror."),
        (error(f"see {QUESTION}", "not_found"), "status 404, not_found."),
        (error("x" * 65), "status 404."),
        (b'{"error": "planted"}', "status 404."),
    ],
)
async def test_the_refusals_name_is_told_if_it_is_a_name(model, server, body, said):
    server.script(Reply(status=404, body=body))
    with pytest.raises(ModelError) as caught:
        await ask(model)
    assert caught.value.detail.endswith(said)


@pytest.mark.parametrize(
    ("retry_after", "seconds"),
    [
        ("7", {7}),
        ("7.2", {8}),
        ("0", {1}),
        ("-3", {1}),
        ("900", {60}),
        ("9" * 5000, {60}),
        (formatdate(time.time() + 3000, usegmt=True), {60}),
        (formatdate(0, usegmt=True), {1}),
        ("soon", {1}),
        (None, {1}),
    ],
)
async def test_the_rate_limits_wait_is_passed_on(server, recorder, retry_after, seconds):
    headers = {} if retry_after is None else {"retry-after": retry_after}
    server.script(Reply(status=429, headers=headers))
    async with model_of(recorder, base_url=server.base_url, max_retries=0) as model:
        with pytest.raises(ModelUnavailable) as caught:
            await ask(model)
    assert caught.value.retry_after_seconds in seconds


@pytest.mark.parametrize("place", ["before_headers", "in_body"])
async def test_a_broken_connection_is_retried_and_then_unavailable(model, server, recorder, place):
    server.script(*[Reply(text="half of it", drop=place)] * 2)
    with pytest.raises(ModelUnavailable):
        await ask(model)
    assert len(server.requests) == 2
    assert [call.outcome for call in recorder.of(ModelCalled)] == ["model_unavailable"]


async def test_a_slow_answer_within_the_deadline_is_an_answer(model, server):
    server.script(Reply(text="late", delay_seconds=0.1))
    assert (await ask(model, seconds=5)).content == "late"


async def test_a_model_that_does_not_answer_ends_at_the_deadline(model, server, recorder):
    released = asyncio.Event()
    server.script(Reply(text="late", until=released))
    started = time.monotonic()
    with pytest.raises(ModelTimeout):
        await ask(model, seconds=0.3)
    assert time.monotonic() - started < 2
    assert len(server.requests) == 1
    assert [call.outcome for call in recorder.of(ModelCalled)] == ["model_timeout"]
    released.set()


async def test_a_cancelled_call_is_no_fault_of_the_model(model, server, recorder):
    released = asyncio.Event()
    server.script(Reply(text="late", until=released))
    asking = asyncio.create_task(ask(model))
    await eventually(lambda: len(server.requests) == 1, within_seconds=2)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert [call.outcome for call in recorder.of(ModelCalled)] == ["cancelled"]
    released.set()


async def test_the_deadline_holds_over_all_retries(model, server):
    # The client's own pause is longer.
    server.script(*[Reply(status=500)] * 2)
    started = time.monotonic()
    with pytest.raises(ModelTimeout):
        await ask(model, seconds=0.3)
    assert time.monotonic() - started < 2
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "wait",
    [
        lambda: {"retry-after": "30"},
        lambda: {"retry-after": formatdate(time.time() + 30, usegmt=True)},
        lambda: {"retry-after-ms": "30000", "retry-after": "0"},
    ],
    ids=["seconds", "date", "milliseconds"],
)
@pytest.mark.parametrize(("status", "kind"), [(429, ModelUnavailable), (503, ModelError)])
async def test_a_wait_beyond_the_deadline_is_not_begun(model, server, recorder, status, kind, wait):
    server.script(Reply(status=status, headers=wait()))
    with pytest.raises(kind) as caught:
        await ask(model, seconds=3)
    assert caught.value.may_retry
    assert len(server.requests) == 1
    assert [call.outcome for call in recorder.of(ModelCalled)] == [kind.code]


@pytest.mark.parametrize("host", ["127.0.0.1:9", "no-such-host.invalid"])
async def test_a_server_that_is_not_there_is_unavailable(recorder, host):
    async with model_of(recorder, base_url=f"http://{host}/v1", max_retries=0) as model:
        with pytest.raises(ModelUnavailable) as caught:
            await ask(model)
    assert host not in repr(caught.value)


@pytest.mark.parametrize(
    "changes", [{"api_key": f"{KEY}\u201d"}, {"base_url": "http://127.0.0.1:99999/v1"}]
)
async def test_a_setting_that_the_client_chokes_on_is_refused_unseen(server, recorder, changes):
    async with model_of(recorder, **({"base_url": server.base_url} | changes)) as model:
        with pytest.raises(ModelError) as caught:
            await ask(model)
    assert not caught.value.may_retry
    assert KEY not in repr(caught.value)
    assert "99999" not in repr(caught.value)


async def test_after_closing_the_model_is_unavailable(model, server):
    await ask(model)
    await model.close()
    await model.close()
    with pytest.raises(ModelUnavailable):
        await ask(model)
    assert len(server.requests) == 1


async def test_the_environment_changes_nothing(monkeypatch, server, recorder):
    nowhere = "http://127.0.0.1:9"
    for name, value in {
        "OPENAI_API_KEY": "planted",
        "OPENAI_ADMIN_KEY": "planted",
        "OPENAI_BASE_URL": nowhere,
        "OPENAI_ORG_ID": "planted",
        "OPENAI_PROJECT_ID": "planted",
        "OPENAI_CUSTOM_HEADERS": "Authorization: Bearer planted\nX-Planted: planted",
        "HTTP_PROXY": nowhere,
        "http_proxy": nowhere,
        "ALL_PROXY": nowhere,
    }.items():
        monkeypatch.setenv(name, value)
    async with model_of(recorder, base_url=server.base_url, max_retries=0) as model:
        await ask(model)
    [headers] = server.headers
    assert headers["authorization"] == f"Bearer {KEY}"
    assert "planted" not in " ".join(headers.values()).replace(KEY, "")


async def test_the_package_is_imported_when_the_model_is_opened_and_not_before():
    code = (
        "import asyncio, sys\n"
        "from service.bootstrap.ambient import SystemClock\n"
        "from service.adapters.openai.model import ModelSettings, OpenAIModel\n"
        "model = OpenAIModel(ModelSettings(api_key='k'), None, SystemClock())\n"
        "assert 'openai' not in sys.modules\n"
        "asyncio.run(model.open())\n"
        "assert 'openai' in sys.modules\n"
    )
    python = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    assert await python.wait() == 0


async def test_without_a_model_every_question_says_why():
    with pytest.raises(ModelUnavailable, match="set OPENAI_API_KEY"):
        await NoModel("No model: set OPENAI_API_KEY.").answer(PROMPT, deadline_seconds=1)


@pytest.mark.parametrize("name", ["x" * 9000, "a\nb", ""])
def test_a_name_that_is_none_is_not_what_an_answer_is_counted_under(name):
    body = {"model": name, "choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]}
    assert ChatCompletions().read_answer(msgspec.json.encode(body), "asked").model == "asked"
    assert (
        ChatCompletions().read_answer(msgspec.json.encode(body | {"model": "m-1"}), "asked").model
        == "m-1"
    )
