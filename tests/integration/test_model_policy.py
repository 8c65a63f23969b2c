"""Which calls reach a model at all: breaker, bound and fallbacks, against a real HTTP server."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec
import pytest

from service.adapters.openai.model import OpenAIModel
from service.domain.errors import (
    ChatMemoryError,
    ContextTooLarge,
    ModelError,
    ModelTimeout,
    ModelUnavailable,
    Overloaded,
)
from service.domain.observations import BreakerChanged, ModelCalled
from service.domain.turns import Answer, Delta, Prompt
from tests.support.clocks import HandClock
from tests.support.model_server import ModelServer, Reply, chunk
from tests.support.openai_models import PROMPT, model_of
from tests.support.stores import Recorder

HANG = asyncio.Event()
DOWN = Reply(status=500)
OTHER = msgspec.structs.replace(PROMPT, model="other")


@pytest.fixture
async def server() -> AsyncGenerator[ModelServer]:
    async with ModelServer() as server:
        yield server


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
async def model(
    server: ModelServer, recorder: Recorder, clock: HandClock
) -> AsyncGenerator[OpenAIModel]:
    async with model_of(recorder, clock, **at(server), breaker_failures=2) as model:
        yield model


def at(server: ModelServer) -> dict[str, Any]:
    return {
        "base_url": server.base_url,
        "max_retries": 0,
        "first_token_seconds": 0.3,
        "stall_seconds": 0.3,
    }


async def told(
    model: OpenAIModel, prompt: Prompt = PROMPT, seconds: float = 5
) -> list[Delta | Answer]:
    async with aclosing(model.stream(prompt, deadline_seconds=seconds)) as pieces:
        return [piece async for piece in pieces]


async def answered(
    model: OpenAIModel, prompt: Prompt = PROMPT, seconds: float = 5
) -> list[Delta | Answer]:
    return [await model.answer(prompt, deadline_seconds=seconds)]


async def error_of(model: OpenAIModel, ask: Any = told, **asked: Any) -> ChatMemoryError:
    with pytest.raises(ChatMemoryError) as caught:
        await ask(model, **asked)
    return caught.value


@pytest.mark.parametrize("ask", [told, answered])
@pytest.mark.parametrize(
    "trouble",
    [
        Reply(status=500),
        Reply(status=503),
        Reply(drop="before_headers"),
        Reply(text="half of it", drop="in_body", steps=["break"]),
        Reply(until=HANG, steps=[HANG]),
    ],
)
async def test_outages_in_a_row_stop_the_asking(model, server, recorder, clock, ask, trouble):
    server.script(*[trouble] * 2)
    for _ in range(2):
        await error_of(model, ask, seconds=1.5)
    refusal = await error_of(model, ask)

    assert type(refusal) is ModelUnavailable
    assert refusal.retry_after_seconds == 10
    assert len(server.requests) == 2
    assert len(recorder.of(ModelCalled)) == 2

    clock.pass_seconds(10)
    await ask(model)
    await ask(model)
    assert [one.state for one in recorder.of(BreakerChanged)] == ["open", "half_open", "closed"]


@pytest.mark.parametrize("ask", [told, answered])
@pytest.mark.parametrize(
    "reply",
    [
        Reply(status=400),
        Reply(status=429),
        Reply(status=408),
        Reply(body=b"not what was asked for"),
    ],
)
async def test_what_a_server_says_while_it_is_there_is_no_outage(model, server, ask, reply):
    server.script(*[reply] * 3)
    for _ in range(3):
        await error_of(model, ask)
    await ask(model)
    assert len(server.requests) == 4


@pytest.mark.parametrize("ask", [told, answered])
async def test_a_rate_limit_longer_than_the_deadline_is_no_outage(server, recorder, ask):
    changes: dict[str, Any] = at(server) | {"max_retries": 2, "breaker_failures": 1}
    async with model_of(recorder, **changes) as model:
        server.script(Reply(status=429, headers={"retry-after": "30"}))
        refusal = await error_of(model, ask, seconds=1)
        assert type(refusal) is ModelUnavailable
        assert refusal.retry_after_seconds == 30
        await ask(model)
    assert len(server.requests) == 2


@pytest.mark.parametrize("ask", [told, answered])
async def test_a_deadline_too_short_for_any_model_is_no_outage(model, server, ask):
    server.script(*[Reply(until=HANG)] * 3)
    for _ in range(3):
        assert isinstance(await error_of(model, ask, seconds=0.1), ModelTimeout)
    await ask(model)


async def test_one_models_outage_is_not_anothers(model, server):
    server.script(DOWN, DOWN)
    for _ in range(2):
        await error_of(model)
    await told(model, OTHER)


async def test_a_probe_whose_caller_leaves_makes_room_for_the_next(model, server, clock):
    server.script(DOWN, DOWN, Reply(steps=[HANG]))
    for _ in range(2):
        await error_of(model)
    clock.pass_seconds(10)
    probing = asyncio.create_task(told(model))
    await asyncio.sleep(0.1)
    assert isinstance(await error_of(model), ModelUnavailable)
    probing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await probing
    await told(model)
    assert len(server.requests) == 4


@pytest.mark.parametrize("ask", [told, answered])
async def test_past_so_many_calls_at_once_the_next_is_refused(server, recorder, ask):
    async with model_of(recorder, **at(server), calls_max=1) as model:
        server.script(Reply(steps=[chunk(content="a"), HANG]))
        pieces = model.stream(PROMPT, deadline_seconds=5)
        await anext(pieces)
        refusal = await error_of(model, ask)
        assert type(refusal) is Overloaded
        assert refusal.retry_after_seconds
        assert len(server.requests) == 1

        await pieces.aclose()
        await ask(model)


@pytest.fixture
async def backed(server: ModelServer, recorder: Recorder) -> AsyncGenerator[OpenAIModel]:
    """A model with two others behind it."""
    async with model_of(
        recorder, HandClock(), **at(server), breaker_failures=1, fallback_models=("m", "b", "c")
    ) as model:
        yield model


def asked(server: ModelServer) -> list[str]:
    return [request["model"] for request in server.requests]


@pytest.mark.parametrize("ask", [told, answered])
@pytest.mark.parametrize(
    "trouble",
    [
        Reply(status=500),
        Reply(status=429),
        Reply(drop="before_headers"),
        Reply(body=b"", steps=[]),
        Reply(text="half of it", drop="in_body", steps=[chunk(content=""), "break"]),
    ],
)
async def test_where_a_model_is_away_the_next_one_answers(backed, server, recorder, ask, trouble):
    server.script(trouble)
    *_, answer = await ask(backed)
    assert isinstance(answer, Answer)
    assert answer.model == "b"
    assert asked(server) == ["m", "b"]
    assert [(call.model, call.outcome == "ok") for call in recorder.of(ModelCalled)] == [
        ("m", False),
        ("b", True),
    ]


async def test_a_model_that_does_not_begin_is_followed_by_the_next(backed, server):
    server.script(Reply(steps=[HANG]), DOWN)
    *_, answer = await told(backed)
    assert isinstance(answer, Answer)
    assert answer.model == "c"


async def test_a_model_that_is_left_alone_is_passed_over(backed, server):
    server.script(DOWN)
    await told(backed)
    await told(backed)
    assert asked(server) == ["m", "b", "b"]


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (Reply(status=400), ModelError),
        (Reply(status=401), ModelError),
        (
            Reply(status=400, body=b'{"error": {"code": "context_length_exceeded"}}'),
            ContextTooLarge,
        ),
        (Reply(steps=[chunk(content="half")]), ModelError),
        (Reply(steps=[chunk(content="half"), HANG]), ModelTimeout),
    ],
)
async def test_a_refused_question_and_a_begun_answer_stay_with_their_model(
    backed, server, reply, kind
):
    server.script(reply)
    assert type(await error_of(backed)) is kind
    assert asked(server) == ["m"]


async def test_where_none_answers_the_error_is_the_asked_models(backed, server):
    server.script(Reply(status=429, headers={"retry-after": "7"}), DOWN, Reply(status=404))
    refusal = await error_of(backed)
    assert type(refusal) is ModelUnavailable
    assert refusal.retry_after_seconds == 7
    assert asked(server) == ["m", "b", "c"]


async def test_models_share_one_deadline(backed, server):
    server.script(*[Reply(steps=[HANG])] * 3)
    assert isinstance(await error_of(backed, seconds=0.5), ModelTimeout)
    assert asked(server) == ["m", "b"]
