"""Every fault that llmock offers, met by the whole service, and llmock's verdict on how.

llmock breaks streams only, so a fault inside an answer has no plain variant here; plain answers
that break are in test_model_policy.py. It grades what it sees, which is requests: where its verdict
cannot be clean, the test names it and says why.
"""

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec
import pytest
from llmock.chaos import ChaosSettings, StreamChaos
from llmock.pytest_plugin import LLMock
from llmock.scenarios import Fail
from llmock.testing import LLMockServer
from redis.asyncio import Redis

from service.settings import Settings
from tests.support.openai_models import model_of
from tests.support.serving import Event, Process, process
from tests.support.stores import Recorder

QUESTION = "the first question"
SAID = "one two three four five six"
KEYED = {"Idempotency-Key": "k"}
FIRST_TOKEN_SECONDS = 0.5
STALL_SECONDS = 0.4
NEVER = 1_000_000

_numbers: Final = itertools.count(1)


class Asked(msgspec.Struct, kw_only=True):
    """What a caller was told of a turn, plain or streamed."""

    state: str
    text: str
    """Of the answer, or of all deltas."""
    turn: dict[str, Any] = {}
    """Empty where a plain turn failed."""
    status: int | None = None
    code: str | None = None
    retryable: bool | None = None
    retry_after: str | None = None


class Asking(msgspec.Struct):
    """A session of its own in a service whose model is at llmock, and one way of asking it."""

    here: Process
    streams: bool
    session: str = msgspec.field(default_factory=lambda: f"/v1/sessions/{next(_numbers)}")

    async def ask(
        self, message: str = QUESTION, *, key: dict[str, str] | None = None, **more: Any
    ) -> Asked:
        return await self.post("/chat", {"message": message} | more, key=key)

    async def post(self, path: str, body: Any, *, key: dict[str, str] | None = None) -> Asked:
        path, body = self.session + path, body | {"stream": self.streams}
        if self.streams:
            events = [event async for event in self.here.events(path, json=body, headers=key)]
            return await self._heard(events)

        response = await self.here.http.post(path, json=body, headers=key)
        said = response.json()
        if response.status_code == 200:
            return Asked(state=said["state"], text=said["response"] or "", turn=said)
        assert response.headers["x-should-retry"] == str(said["retryable"]).lower()
        return Asked(
            state="failed",
            text="",
            status=response.status_code,
            code=said["code"],
            retryable=said["retryable"],
            retry_after=response.headers.get("retry-after"),
        )

    async def stored(self) -> list[tuple[str, Any, Any]]:
        items = (await self.here.http.get(f"{self.session}/messages")).json()["items"]
        return [(item["role"], item["content"], item["status"]) for item in items]

    async def _heard(self, events: list[Event]) -> Asked:
        started, *deltas, end = events
        assert started.name == "turn.started"
        assert {event.name for event in deltas} <= {"delta"}
        turn = end.data
        assert end.name == ("turn.failed" if turn["state"] == "failed" else "turn.completed")
        text = "".join(event.data.get("text") or "" for event in deltas)
        assert (turn["response"] or "") == text
        looked_up = await self.here.http.get(f"{self.session}/turns/{turn['turn_id']}")
        assert looked_up.json() == turn
        error = turn.get("error") or {}
        return Asked(
            state=turn["state"],
            text=text,
            turn=turn,
            status=error.get("status"),
            code=error.get("code"),
            retryable=error.get("retryable"),
        )


@pytest.fixture(scope="module", params=["chat_completions", "responses"])
def api(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=["plain", "streamed"])
def streams(request: pytest.FixtureRequest) -> bool:
    return request.param == "streamed"


@pytest.fixture(scope="module")
async def serve(api: str, llmock_server: LLMockServer, redis_of_run: str) -> Any:
    """Opens a service whose model has these settings."""
    async with Redis.from_url(redis_of_run, protocol=2) as redis:
        await redis.flushdb()

    @asynccontextmanager
    async def opened(*, deadline_seconds: float = 8, **model: Any) -> AsyncGenerator[Process]:
        settings = Settings(store="redis", redis_url=redis_of_run)
        asked: dict[str, Any] = {"base_url": llmock_server.base_url(), "api": api}
        asked |= {"max_retries": 2, "breaker_failures": NEVER} | model
        async with (
            model_of(Recorder(), **asked) as chosen,
            process(settings, asks=chosen, turn_deadline_seconds=deadline_seconds) as here,
        ):
            yield here

    return opened


@pytest.fixture(scope="module")
async def patient(serve: Any) -> AsyncGenerator[Process]:
    """More patience than any fault here needs."""
    async with serve() as here:
        yield here


@pytest.fixture(scope="module")
async def impatient(serve: Any) -> AsyncGenerator[Process]:
    """Two attempts of little patience."""
    async with serve(
        max_retries=1, first_token_seconds=FIRST_TOKEN_SECONDS, stall_seconds=STALL_SECONDS
    ) as here:
        yield here


@pytest.fixture
def model(llmock: LLMock) -> LLMock:
    """llmock, that says SAID wherever nothing else is scripted before it."""
    return llmock.reply(SAID, times=None)


@pytest.fixture
def asking(model: LLMock, patient: Process, streams: Any) -> Asking:
    return Asking(patient, streams)


@pytest.fixture
def stream(model: LLMock, patient: Process) -> Asking:
    return Asking(patient, streams=True)


@pytest.fixture
def hurried(model: LLMock, impatient: Process) -> Asking:
    return Asking(impatient, streams=True)


def words_after(api: str, count: int) -> int:
    """The chunks before and with so many words."""
    before = {"chat_completions": 1, "responses": 4}
    return before[api] + count


async def graded(llmock: LLMock, *codes: str, attempts: int) -> None:
    """Checks the verdict: clean, warnings included, but for these findings."""
    verdict = await asyncio.to_thread(llmock.verdict)
    assert [finding.code for finding in verdict.findings] == list(codes), verdict.render()
    # A verdict over nothing is clean too.
    assert verdict.attempts == attempts, verdict.render()


async def completed(asking: Asking, asked: Asked) -> None:
    assert (asked.state, asked.text, asked.code) == ("completed", SAID, None)
    assert await asking.stored() == [("user", QUESTION, None), ("assistant", SAID, None)]


async def failed(asking: Asking, asked: Asked, status: int, code: str, *, retryable: bool) -> None:
    """Nothing was said, and only the question is kept."""
    assert (asked.state, asked.text) == ("failed", "")
    assert (asked.status, asked.code, asked.retryable) == (status, code, retryable)
    assert await asking.stored() == [("user", QUESTION, None)]


async def goes_on(llmock: LLMock, asking: Asking) -> None:
    """The session is free, and the model is shown what was stored, once and in order."""
    stored = await asking.stored()
    llmock.reset().reply("and on")
    asked = await asking.ask("the next question")
    assert (asked.state, asked.text) == ("completed", "and on")
    body = llmock.last_request.body
    shown = [(item["role"], item["content"]) for item in body.get("messages") or body["input"]]
    assert shown == [(role, text) for role, text, _ in stored] + [("user", "the next question")]
    await graded(llmock, attempts=1)


async def runs_again(llmock: LLMock, asking: Asking) -> None:
    """A failed turn's key runs it again, without a second question."""
    llmock.reset().reply(SAID)
    await completed(asking, await asking.ask(key=KEYED))
    await goes_on(llmock, asking)


# Errors in place of an answer.


async def test_a_rate_limit_is_waited_out(llmock, asking):
    llmock.rate_limit(times=2, retry_after=0.2)
    await completed(asking, await asking.ask())
    await graded(llmock, attempts=3)
    await goes_on(llmock, asking)


async def test_a_rate_limit_that_lasts_is_told_with_its_wait(llmock, asking):
    llmock.rate_limit(times=None, retry_after=0.1)
    asked = await asking.ask(key=KEYED)
    await failed(asking, asked, 503, "model_unavailable", retryable=True)
    assert asked.retry_after == (None if asking.streams else "1")
    await graded(llmock, attempts=3)
    await runs_again(llmock, asking)


async def test_a_wait_beyond_the_turns_deadline_is_told_and_not_begun(llmock, asking):
    llmock.rate_limit(retry_after=30)
    started = time.monotonic()
    asked = await asking.ask(key=KEYED)
    assert time.monotonic() - started < 4
    await failed(asking, asked, 503, "model_unavailable", retryable=True)
    assert asked.retry_after == (None if asking.streams else "30")
    # No attempt may come earlier, and none can come later: the wait is the caller's.
    await graded(llmock, "gave_up", attempts=1)
    await runs_again(llmock, asking)


async def test_a_spent_quota_is_waited_for(llmock, asking):
    llmock.limits(tpm=60_000)  # 1000 a second.
    await Asking(asking.here, asking.streams).ask("another's", max_output_tokens=59_900)
    await completed(asking, await asking.ask(max_output_tokens=300))
    await graded(llmock, attempts=3)
    assert [record.status for record in llmock.requests] == [200, 429, 200]
    await goes_on(llmock, asking)


@pytest.mark.parametrize("status", [408, 409, 500, 502, 503, 504, 529])
async def test_an_error_that_passes_costs_nothing_but_time(llmock, asking, status):
    llmock.fail(status, times=2, retry_after=0.05)
    await completed(asking, await asking.ask())
    await graded(llmock, attempts=3)
    await goes_on(llmock, asking)


async def test_repeats_are_further_and_further_apart(llmock, stream):
    llmock.fail(500, times=2)
    await completed(stream, await stream.ask())
    await graded(llmock, attempts=3)


@pytest.mark.parametrize("status", [500, 503])
async def test_an_error_that_lasts_is_told(llmock, asking, status):
    llmock.fail(status, times=None, retry_after=0.05)
    asked = await asking.ask(key=KEYED)
    await failed(asking, asked, 502, "model_error", retryable=True)
    await graded(llmock, attempts=3)
    await runs_again(llmock, asking)


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 413, 422])
async def test_a_refusal_is_not_asked_again(llmock, asking, status):
    llmock.fail(status, times=None)
    asked = await asking.ask(key=KEYED)
    await failed(asking, asked, 502, "model_error", retryable=False)
    await graded(llmock, attempts=1)
    await runs_again(llmock, asking)


async def test_a_provider_that_is_down_is_left_alone(llmock, serve, streams):
    async with serve(max_retries=1, breaker_failures=2) as here:
        asking = Asking(here, streams)
        llmock.add(Fail(503, retry_after=0.05, times=None))
        for _ in range(2):
            asked = await asking.ask(key=KEYED)
            await failed(asking, asked, 502, "model_error", retryable=True)
        asked = await asking.ask(key=KEYED)
        await failed(asking, asked, 503, "model_unavailable", retryable=True)
        # The turn that was repeated is one call to llmock.
        await graded(llmock, attempts=4)


async def test_too_long_a_conversation_is_halved(llmock, asking):
    llmock.limits(context_window=40)
    for number in range(3):
        asked = await asking.ask(f"{number} " + "long " * 12)
        assert (asked.state, asked.text) == ("completed", SAID)
    # Each refused question was followed by another, shorter one.
    verdict = await asyncio.to_thread(llmock.verdict)
    assert "context_window" in {record.fault for record in llmock.requests}
    verdict.assert_ok(strict=True)
    assert len(await asking.stored()) == 6


async def test_a_question_too_long_for_the_model_is_told(llmock, asking):
    llmock.context_overflow(times=None)
    asked = await asking.ask(key=KEYED)
    await failed(asking, asked, 422, "context_too_large", retryable=False)
    await graded(llmock, attempts=1)
    await runs_again(llmock, asking)


# Answers that come late.


async def test_a_slow_answer_is_waited_for(llmock, asking):
    llmock.delay(0.3)
    await completed(asking, await asking.ask())
    await graded(llmock, attempts=1)
    await goes_on(llmock, asking)


async def test_a_plain_answer_later_than_the_deadline_is_a_time_out(llmock, serve):
    async with serve(deadline_seconds=0.8) as here:
        asking = Asking(here, streams=False)
        llmock.delay(1.0)
        asked = await asking.ask(key=KEYED)
        await failed(asking, asked, 504, "model_timeout", retryable=True)
        await graded(llmock, attempts=1)
        await runs_again(llmock, asking)


@pytest.mark.parametrize("fault", ["delay", "slow_first_token"])
async def test_a_stream_that_begins_late_is_asked_for_again(llmock, hurried, fault):
    getattr(llmock, fault)(0.9)
    await completed(hurried, await hurried.ask())
    await graded(llmock, attempts=2)
    await goes_on(llmock, hurried)


async def test_a_stream_that_never_begins_in_time_is_a_time_out(llmock, hurried):
    llmock.slow_first_token(0.9, times=None)
    asked = await hurried.ask(key=KEYED)
    await failed(hurried, asked, 504, "model_timeout", retryable=True)
    await graded(llmock, attempts=2)
    await runs_again(llmock, hurried)


async def test_a_slow_first_token_within_patience_is_waited_for(llmock, stream):
    llmock.slow_first_token(0.3)
    await completed(stream, await stream.ask())
    await graded(llmock, attempts=1)
    await goes_on(llmock, stream)


async def test_a_slow_stream_is_no_stalled_one(llmock, hurried):
    llmock.pace(60)  # Longer than any patience in all, shorter between two chunks.
    await completed(hurried, await hurried.ask())
    await graded(llmock, attempts=1)


# Streams that break.

CODES = {
    "disconnect": (503, "model_unavailable"),
    "truncate": (502, "model_error"),
    "corrupt": (502, "model_error"),
    "stall": (504, "model_timeout"),
}
FOUND = {
    "disconnect": ["gave_up"],
    "truncate": ["truncated_stream_accepted"],
    "corrupt": ["malformed_chunk_ignored"],
    "stall": [],
}
"""By llmock where a fault was not followed by another attempt, whatever became of it."""


def break_stream(llmock: LLMock, kind: str, *, after_chunks: int, times: int | None = 1) -> None:
    more: dict[str, Any] = {"seconds": 3} if kind == "stall" else {}
    if kind == "corrupt":
        # So that llmock sees its reader leave: what lies in a buffer counts as read, and what was
        # read to its end counts as a call without a repeat.
        llmock.pace(20)
    getattr(llmock, kind)(after_chunks=after_chunks, times=times, **more)


@pytest.mark.parametrize(("kind", "at_once"), [("disconnect", True), *((k, False) for k in CODES)])
async def test_a_stream_that_breaks_before_it_said_anything_is_asked_for_again(
    llmock, hurried, api, kind, at_once
):
    break_stream(llmock, kind, after_chunks=0 if at_once else words_after(api, 0))
    await completed(hurried, await hurried.ask())
    await graded(llmock, attempts=2)
    await goes_on(llmock, hurried)


@pytest.mark.parametrize("kind", CODES)
async def test_streams_that_always_break_before_they_say_anything_fail(llmock, hurried, kind):
    break_stream(llmock, kind, after_chunks=1, times=None)
    asked = await hurried.ask(key=KEYED)
    await failed(hurried, asked, *CODES[kind], retryable=True)
    # llmock takes it that whoever stops asking after a cut or garbled stream has used it, after any
    # number of attempts: it cannot see that the caller was told of an error. To give up a broken
    # connection after two attempts is fine with it.
    found = [] if kind == "disconnect" else FOUND[kind]
    await graded(llmock, *found, attempts=2)
    await runs_again(llmock, hurried)


@pytest.mark.parametrize("kind", CODES)
async def test_a_stream_that_breaks_after_text_is_kept_as_incomplete(llmock, hurried, api, kind):
    break_stream(llmock, kind, after_chunks=words_after(api, 2))
    asked = await hurried.ask()
    assert (asked.state, asked.text) == ("incomplete", "one two ")
    assert (asked.status, asked.code) == CODES[kind]
    assert await hurried.stored() == [
        ("user", QUESTION, None),
        ("assistant", "one two ", "incomplete"),
    ]
    # The caller has read two words. A second attempt would say something else after them, so there
    # is none; llmock's clean verdict would need one with the same body. It cannot see that the
    # answer is told and stored as incomplete, with its error.
    await graded(llmock, *FOUND[kind], attempts=1)
    await goes_on(llmock, hurried)


@pytest.mark.parametrize("api", ["chat_completions"], indirect=True)
@pytest.mark.parametrize(("kind", "chunk"), [*((kind, 8) for kind in CODES), ("corrupt", 9)])
async def test_what_breaks_after_the_last_word_costs_no_answer(llmock, stream, kind, chunk):
    """The ninth chunk is the usage, the tenth the end mark; a Responses stream has neither."""
    break_stream(llmock, kind, after_chunks=chunk)
    asked = await stream.ask()
    await completed(stream, asked)
    # The finish reason had come, which llmock does not look at.
    await graded(llmock, *FOUND[kind], attempts=1)
    await goes_on(llmock, stream)


async def test_faults_of_different_kinds_share_one_budget_and_one_backoff(llmock, stream):
    llmock.fail(500).disconnect(after_chunks=0)
    await completed(stream, await stream.ask())
    await graded(llmock, attempts=3)
    await goes_on(llmock, stream)


# Tool calls that are wrong, or begun and cut off.

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look",
            "parameters": {"type": "object", "properties": {"where": {"type": "string"}}},
        },
    }
]


@pytest.mark.parametrize("kind", ["malformed_arguments", "unknown_tool"])
async def test_a_broken_tool_call_is_told_as_the_model_made_it(llmock, patient, streams, kind):
    given = '{"where": "under the table"}'
    expected = {
        "malformed_arguments": {"name": "look", "arguments": given[: len(given) // 2]},
        "unknown_tool": {"name": "llmock_unknown_tool", "arguments": given},
    }
    llmock.call_tool("look", {"where": "under the table"}).break_tool_call(kind)
    asking = Asking(patient, streams)
    asked = await asking.ask(tools=TOOLS)
    [call] = asked.turn["tool_calls"]
    assert (asked.state, call["function"]) == ("completed", expected[kind])
    await graded(llmock, attempts=1)

    llmock.reply(SAID)
    results = [{"tool_call_id": call["id"], "content": "There is no such tool."}]
    path = f"/turns/{asked.turn['turn_id']}/tool-results"
    after = await asking.post(path, {"results": results})
    assert (after.state, after.text) == ("completed", SAID)
    roles = [role for role, _, _ in await asking.stored()]
    assert roles == ["user", "assistant", "tool", "assistant"]
    await graded(llmock, attempts=2)


async def test_a_tool_call_that_is_cut_off_is_not_kept(llmock, patient, api):
    stream = Asking(patient, streams=True)
    llmock.call_tool("look", {"where": "under the table"})
    llmock.disconnect(after_chunks={"chat_completions": 3, "responses": 5}[api])
    asked = await stream.ask(tools=TOOLS)
    await failed(stream, asked, *CODES["disconnect"], retryable=True)
    # Its first half was told, so there is no second attempt, as after text.
    await graded(llmock, "gave_up", attempts=1)
    await goes_on(llmock, stream)


# All of it at random.

CHAOS = ChaosSettings(error_rates={400: 0.05, 500: 0.15, 502: 0.1})
STREAM_CHAOS = StreamChaos(
    fault_rates=tuple((kind, 0.12) for kind in ("disconnect", "truncate", "malformed", "stall")),
    stall_seconds=3,
)


async def test_no_text_is_lost_or_doubled_whatever_comes(model, llmock_server, impatient):
    llmock_server.state.chaos = CHAOS
    llmock_server.state.stream_chaos = STREAM_CHAOS

    async def one(number: int) -> str:
        asking = Asking(impatient, streams=number % 2 == 0)
        asked = await asking.ask(f"question {number}")
        answers = [(content, status) for _, content, status in (await asking.stored())[1:]]
        match asked.state:
            case "completed":
                assert (asked.text, answers) == (SAID, [(SAID, None)])
            case "incomplete":
                assert asking.streams
                assert SAID.startswith(asked.text)
                assert answers == [(asked.text, "incomplete")]
            case state:
                assert (state, asked.text, answers) == ("failed", "", [])
        return asked.state

    states = await asyncio.gather(*(one(number) for number in range(40)))
    assert {"completed", "failed"} <= set(states)
    verdict = await asyncio.to_thread(model.verdict)
    # The one error that any of the tests above has to name.
    errors = {finding.code for finding in verdict.errors}
    assert errors <= {"truncated_stream_accepted"}, verdict.render()
