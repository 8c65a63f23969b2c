"""The model adapter against a real HTTP server: answers, troubles, budget and deadline."""

import asyncio
import time
from collections.abc import AsyncGenerator

import msgspec
import pytest

from service.adapters.openai.chat_completions import ModelSettings, NoModel, OpenAIModel
from service.domain.errors import (
    ChatMemoryError,
    ContextTooLarge,
    ModelError,
    ModelTimeout,
    ModelUnavailable,
)
from service.domain.observations import ModelCalled
from service.domain.turns import Prompt, Usage
from tests.support.model_server import ModelServer, Reply
from tests.support.stores import Recorder

KEY = "sk-planted-secret"
QUESTION = "the planted question 你好 🦉 \u202e שלום"
PROMPT = Prompt(messages=({"role": "user", "content": QUESTION},), model="m")


@pytest.fixture
async def server() -> AsyncGenerator[ModelServer]:
    async with ModelServer() as server:
        yield server


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
async def model(server: ModelServer, recorder: Recorder) -> AsyncGenerator[OpenAIModel]:
    settings = ModelSettings(api_key=KEY, base_url=server.base_url, max_retries=1)
    model = OpenAIModel(settings, recorder)
    yield model
    await model.close()


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
    assert server.authorizations == [f"Bearer {KEY}"]
    [call] = recorder.of(ModelCalled)
    assert (call.outcome, call.input_tokens, call.output_tokens) == ("ok", 11, 5)


async def test_choices_of_the_caller_reach_the_model(model, server):
    await ask(model, msgspec.structs.replace(PROMPT, temperature=0.0, max_output_tokens=9))
    assert (server.requests[0]["temperature"], server.requests[0]["max_completion_tokens"]) == (
        0,
        9,
    )


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


def error(code: str | None = None, kind: str | None = None) -> bytes:
    return msgspec.json.encode({"error": {"message": QUESTION, "code": code, "type": kind}})


NOW = {"retry-after-ms": "1"}


@pytest.mark.parametrize(
    ("replies", "kind", "retryable", "calls"),
    [
        ([Reply(status=500, headers=NOW)] * 2, ModelError, True, 2),
        ([Reply(status=503, headers=NOW)] * 2, ModelError, True, 2),
        ([Reply(status=429, headers=NOW)] * 2, ModelUnavailable, True, 2),
        ([Reply(status=400, body=error("bad_thing"))], ModelError, False, 1),
        ([Reply(status=401, body=error(kind="auth"))], ModelError, False, 1),
        ([Reply(status=403, body=b"<html>")], ModelError, False, 1),
        ([Reply(status=404)], ModelError, False, 1),
        ([Reply(status=422)], ModelError, False, 1),
        ([Reply(status=400, body=error("context_length_exceeded"))], ContextTooLarge, False, 1),
        (
            [Reply(status=400, body=error(kind="exceed_context_size_error"))],
            ContextTooLarge,
            False,
            1,
        ),
        ([Reply(body=b'{"choices": [{"mess')], ModelError, True, 1),
        ([Reply(body=b'{"choices": []}')], ModelError, True, 1),
        ([Reply(body=b"\xff")], ModelError, True, 1),
        ([Reply(body=b"null")], ModelError, True, 1),
        ([Reply(message={"role": "assistant", "content": ""})], ModelError, True, 1),
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


async def test_the_rate_limits_wait_is_passed_on(server, recorder):
    settings = ModelSettings(api_key=KEY, base_url=server.base_url, max_retries=0)
    model = OpenAIModel(settings, recorder)
    server.script(Reply(status=429, headers={"retry-after": "7"}))
    with pytest.raises(ModelUnavailable) as caught:
        await ask(model)
    assert caught.value.retry_after_seconds == 7
    await model.close()


async def test_a_model_that_does_not_answer_ends_at_the_deadline(model, server):
    released = asyncio.Event()
    server.script(Reply(text="late", until=released))
    started = time.monotonic()
    with pytest.raises(ModelTimeout):
        await ask(model, seconds=0.3)
    assert time.monotonic() - started < 2
    released.set()


async def test_the_deadline_holds_over_all_retries(model, server):
    server.script(*[Reply(status=500, headers={"retry-after": "5"})] * 2)
    started = time.monotonic()
    with pytest.raises(ModelTimeout):
        await ask(model, seconds=0.4)
    assert time.monotonic() - started < 2


async def test_a_server_that_is_not_there_is_unavailable(recorder):
    settings = ModelSettings(api_key=KEY, base_url="http://127.0.0.1:9/v1", max_retries=0)
    model = OpenAIModel(settings, recorder)
    with pytest.raises(ModelUnavailable):
        await ask(model)
    await model.close()


async def test_without_a_model_every_question_says_why():
    with pytest.raises(ModelUnavailable, match="set OPENAI_API_KEY"):
        await NoModel("No model: set OPENAI_API_KEY.").answer(PROMPT, deadline_seconds=1)
