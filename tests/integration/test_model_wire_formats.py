"""The same answers in both wire formats, and what is particular to Responses."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
import pytest

from service.adapters.openai.model import OpenAIModel
from service.domain.errors import ChatMemoryError, ContextTooLarge, ModelError, ModelUnavailable
from service.domain.turns import Answer, Delta, Prompt, Usage
from tests.support.model_server import ModelServer, Reply
from tests.support.openai_models import PROMPT, QUESTION, model_of
from tests.support.responses_wire import event
from tests.support.stores import Recorder

CALLS = [
    {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}},
    {"id": "b", "type": "function", "function": {"name": "g", "arguments": '{"x": "\0"}'}},
]


@pytest.fixture
async def server() -> AsyncGenerator[ModelServer]:
    async with ModelServer() as server:
        yield server


@pytest.fixture(params=["chat_completions", "responses"])
async def model(server: ModelServer, request: pytest.FixtureRequest) -> AsyncGenerator[OpenAIModel]:
    async with model_of(Recorder(), base_url=server.base_url, api=request.param) as model:
        yield model


@pytest.fixture
async def responses(server: ModelServer) -> AsyncGenerator[OpenAIModel]:
    async with model_of(Recorder(), base_url=server.base_url, api="responses") as model:
        yield model


async def plain(model: OpenAIModel, prompt: Prompt = PROMPT) -> Answer:
    return await model.answer(prompt, deadline_seconds=5)


async def streamed(model: OpenAIModel, prompt: Prompt = PROMPT) -> Answer:
    *deltas, answer = [piece async for piece in model.stream(prompt, deadline_seconds=5)]
    assert isinstance(answer, Answer)
    texts = [delta.text for delta in deltas if isinstance(delta, Delta)]
    assert "".join(texts) == (answer.content or "")
    return answer


both_ways = pytest.mark.parametrize("ask", [plain, streamed])


@both_ways
async def test_text_and_usage_come_back(model, server, ask):
    usage = {
        "prompt_tokens": 11,
        "completion_tokens": 5,
        "total_tokens": 16,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 2, "other": 1},
    }
    server.script(Reply(text="réponse 🦉", usage=usage))
    assert await ask(model) == Answer(
        content="réponse 🦉",
        tool_calls=None,
        complete=True,
        usage=Usage(
            input_tokens=11, output_tokens=5, total_tokens=16, cached_tokens=4, reasoning_tokens=2
        ),
        model="m",
        finish_reason="stop",
    )


@both_ways
@pytest.mark.parametrize("usage", ["many", {"prompt_tokens": -1}])
async def test_counts_that_make_no_sense_are_zero(model, server, ask, usage):
    server.script(Reply(text="yes", usage=usage))
    assert (await ask(model)).usage == Usage()


@both_ways
async def test_tool_calls_are_an_answer(model, server, ask):
    server.script(Reply(tool_calls=CALLS, finish_reason="tool_calls"))
    answer = await ask(model)
    assert (answer.content, answer.complete) == (None, True)
    assert answer.tool_calls == msgspec.json.decode(
        msgspec.json.encode(CALLS).replace(b"\\u0000", b"\\ufffd")
    )


@both_ways
async def test_a_refusal_is_what_the_model_said(model, server, ask):
    server.script(Reply(message={"role": "assistant", "content": None, "refusal": "I won't."}))
    assert (await ask(model)).content == "I won't."


@both_ways
@pytest.mark.parametrize("reason", ["length", "content_filter"])
async def test_a_cut_answer_is_incomplete(model, server, ask, reason):
    server.script(Reply(text="half", finish_reason=reason))
    answer = await ask(model)
    assert (answer.content, answer.complete) == ("half", False)


@both_ways
@pytest.mark.parametrize("reason", ["length", "content_filter"])
async def test_a_cut_answer_without_text_is_refused_for_good(model, server, ask, reason):
    server.script(Reply(text="", finish_reason=reason))
    with pytest.raises(ModelError) as caught:
        await ask(model)
    assert not caught.value.may_retry


@both_ways
@pytest.mark.parametrize(
    "body", [b"{}", b"null", b"<html>", b'{"status": "in_progress", "output": [], "choices": []}']
)
async def test_what_is_no_answer_is_asked_for_again(model, server, ask, body):
    server.script(*[Reply(body=body)] * 2)
    with pytest.raises(ModelError) as caught:
        await ask(model)
    assert caught.value.may_retry
    assert len(server.requests) == 2


@both_ways
async def test_the_whole_conversation_reaches_the_model(responses, server, ask):
    prompt = Prompt(
        messages=(
            {"role": "system", "content": "be brief"},
            {"role": "developer", "content": "in French"},
            {
                "role": "user",
                "name": "ada",
                "content": [
                    {"type": "text", "text": "look"},
                    {"type": "image_url", "image_url": {"url": "data:x", "detail": "low"}},
                    {"type": "file", "file": {"file_id": "f1"}},
                    {"type": "input_audio", "input_audio": {}},
                ],
            },
            {"role": "assistant", "content": "so", "tool_calls": CALLS[:1]},
            {"role": "tool", "tool_call_id": "a", "content": "42"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "c", "type": "custom", "custom": {"name": "g", "input": "1"}}
                ],
            },
            {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "7"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "42"}]},
            {"role": "user", "content": QUESTION},
        ),
        model="m",
        temperature=0.0,
        max_output_tokens=9,
        tools=[
            {"type": "function", "function": {"name": "f", "parameters": {}}},
            {"type": "custom", "custom": {"name": "g"}},
        ],
        tool_choice={"type": "function", "function": {"name": "f"}},
        response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": {}}},
    )
    assert (await ask(responses, prompt)).content == f"echo: {QUESTION}"

    [request] = server.requests
    assert request.pop("stream", None) is (True if ask is streamed else None)
    assert request == {
        "model": "m",
        "store": False,
        "instructions": "be brief",
        "input": [
            {"role": "developer", "content": "in French"},
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "look"},
                    {"type": "input_image", "image_url": "data:x", "detail": "low"},
                    {"type": "input_file", "file_id": "f1"},
                    {"type": "input_audio", "input_audio": {}},
                ],
            },
            {"role": "assistant", "content": "so"},
            {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "a", "output": "42"},
            {"type": "custom_tool_call", "call_id": "c", "name": "g", "input": "1"},
            {
                "type": "custom_tool_call_output",
                "call_id": "c",
                "output": [{"type": "input_text", "text": "7"}],
            },
            {"role": "assistant", "content": [{"type": "output_text", "text": "42"}]},
            {"role": "user", "content": QUESTION},
        ],
        "temperature": 0.0,
        "max_output_tokens": 9,
        "tools": [
            {"type": "function", "name": "f", "parameters": {}, "strict": False},
            {"type": "custom", "name": "g"},
        ],
        "tool_choice": {"type": "function", "name": "f"},
        "text": {"format": {"type": "json_schema", "name": "s", "schema": {}}},
    }


@pytest.mark.parametrize("choice", ["auto", "none", "required"])
async def test_a_choice_by_word_stays_one(responses, server, choice):
    await plain(responses, msgspec.structs.replace(PROMPT, tool_choice=choice))
    assert server.requests[0]["tool_choice"] == choice


async def test_instructions_alone_stay_a_message(responses, server):
    lone = {"role": "system", "content": "hello"}
    await plain(responses, msgspec.structs.replace(PROMPT, messages=(lone,)))
    assert server.requests[0]["input"] == [lone]
    assert "instructions" not in server.requests[0]


def item(kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": kind, "id": "i", "call_id": "a", "name": "f"} | fields


def completed(*output: dict[str, Any]) -> bytes:
    return event("response.completed", response={"status": "completed", "output": list(output)})


FUNCTION = [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
CUSTOM = [{"id": "a", "type": "custom", "custom": {"name": "f", "input": "{}"}}]
HEAD = event("response.output_item.added", output_index=0, item=item("function_call"))
WHOLE = event(
    "response.output_item.done", output_index=0, item=item("function_call", arguments="{}")
)
PIECE = event("response.function_call_arguments.delta", output_index=0, delta="{}")


@pytest.mark.parametrize(
    ("steps", "calls", "deltas"),
    [
        ([HEAD, PIECE, WHOLE, completed()], FUNCTION, 2),
        ([HEAD, WHOLE, completed()], FUNCTION, 2),
        ([WHOLE, completed()], FUNCTION, 1),
        ([completed(item("function_call", arguments="{}"))], FUNCTION, 0),
        (
            [
                event("response.output_item.added", item=item("custom_tool_call", input="")),
                event("response.custom_tool_call_input.delta", item_id="i", delta="{"),
                event("response.custom_tool_call_input.delta", item_id="i", delta="}"),
                completed(),
            ],
            CUSTOM,
            3,
        ),
    ],
)
async def test_a_call_is_one_however_it_is_told(responses, server, steps, calls, deltas):
    server.script(Reply(steps=steps))
    *told, answer = [piece async for piece in responses.stream(PROMPT, deadline_seconds=5)]
    assert isinstance(answer, Answer)
    assert answer.tool_calls == calls
    assert len(told) == deltas


@pytest.mark.parametrize(
    ("code", "kind", "calls"),
    [
        ("server_error", ModelError, 2),
        ("rate_limit_exceeded", ModelUnavailable, 2),
        ("context_length_exceeded", ContextTooLarge, 1),
        ("invalid_prompt", ModelError, 1),
    ],
)
@pytest.mark.parametrize("way", ["plain", "failed", "event"])
async def test_a_response_may_fail_with_a_name(responses, server, code, kind, calls, way):
    failure = {"status": "failed", "error": {"code": code, "message": QUESTION}}
    if way == "plain":
        reply = Reply(body=msgspec.json.encode(failure))
    elif way == "failed":
        reply = Reply(steps=[event("response.failed", response=failure)])
    else:
        reply = Reply(steps=[event("error", code=code, message=QUESTION)])
    server.script(*[reply] * calls)
    with pytest.raises(ChatMemoryError) as caught:
        await (plain if way == "plain" else streamed)(responses)
    assert type(caught.value) is kind
    assert "planted" not in repr(caught.value)
    assert len(server.requests) == calls


async def test_the_end_is_the_end_although_the_server_stays(responses, server):
    steps = [event("response.output_text.delta", delta="yes"), completed(), asyncio.Event()]
    server.script(Reply(steps=steps))
    assert (await streamed(responses)).content == "yes"
