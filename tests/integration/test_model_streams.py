"""Streamed answers against a real HTTP server: pieces, troubles, repeats, patience, hanging up."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec
import pytest

from service.adapters.openai.events import EVENT_BYTES_MAX
from service.adapters.openai.model import NoModel, OpenAIModel
from service.adapters.openai.wire import ANSWER_BYTES_MAX
from service.domain.errors import (
    ChatMemoryError,
    ContextTooLarge,
    ModelError,
    ModelTimeout,
    ModelUnavailable,
)
from service.domain.observations import ModelCalled
from service.domain.turns import Answer, Delta, Prompt, Usage
from tests.support.model_server import DONE, ModelServer, Reply, Step, chunk, data
from tests.support.openai_models import KEY, PROMPT, QUESTION, model_of
from tests.support.polling import eventually
from tests.support.responses_wire import translated
from tests.support.stores import Recorder

NOW = {"retry-after-ms": "1"}
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
END = [chunk("stop"), data({"choices": [], "usage": USAGE}), DONE]
HANG = asyncio.Event()


@pytest.fixture
async def server() -> AsyncGenerator[ModelServer]:
    async with ModelServer() as server:
        yield server


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture(params=["chat_completions", "responses"])
def api(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
async def model(server: ModelServer, recorder: Recorder, api: str) -> AsyncGenerator[OpenAIModel]:
    async with model_of(
        recorder, base_url=server.base_url, api=api, first_token_seconds=0.5, stall_seconds=0.4
    ) as model:
        yield model


class Heard:
    """What a stream told, and how it ended."""

    def __init__(self) -> None:
        self.deltas: list[Delta] = []
        self.answer: Answer | None = None
        self.error: ChatMemoryError | None = None

    @property
    def texts(self) -> list[str]:
        return [delta.text for delta in self.deltas if delta.text]


async def listen(model: OpenAIModel, prompt: Prompt = PROMPT, seconds: float = 10) -> Heard:
    heard = Heard()
    try:
        async with aclosing(model.stream(prompt, deadline_seconds=seconds)) as pieces:
            async for piece in pieces:
                assert heard.answer is None
                if isinstance(piece, Delta):
                    heard.deltas.append(piece)
                else:
                    heard.answer = piece
    except ChatMemoryError as error:
        heard.error = error
    return heard


async def test_pieces_come_and_then_the_whole(model, server, recorder):
    usage = USAGE | {
        "prompt_tokens_details": {"cached_tokens": 1},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }
    server.script(Reply(text="une réponse 🦉", usage=usage))
    heard = await listen(model)

    assert heard.texts == ["une ", "réponse ", "🦉"]
    assert heard.answer == Answer(
        content="une réponse 🦉",
        tool_calls=None,
        complete=True,
        usage=Usage(
            input_tokens=3, output_tokens=2, total_tokens=5, cached_tokens=1, reasoning_tokens=2
        ),
        model="m",
        finish_reason="stop",
    )
    [call] = recorder.of(ModelCalled)
    assert (call.outcome, call.input_tokens, call.output_tokens) == ("ok", 3, 2)


async def test_a_piece_is_told_before_the_next_is_there(model, server):
    more = asyncio.Event()
    server.script(Reply(steps=[chunk(content="now"), more, chunk(content=" then"), *END]))
    async with aclosing(model.stream(PROMPT, deadline_seconds=10)) as pieces:
        assert await anext(pieces) == Delta(text="now")
        more.set()
        assert await anext(pieces) == Delta(text=" then")
        assert isinstance(await anext(pieces), Answer)


async def test_bytes_may_be_cut_anywhere_and_the_lines_end_anyhow(model, server, api):
    steps = [chunk(role="assistant", content=None), chunk(content="你好 "), chunk(content="🦉")]
    first, second, *rest = [*steps, *END] if api != "responses" else translated([*steps, *END])
    whole = b"".join(
        [
            b": a comment\r\n\r\n",
            first.replace(b"\n", b"\r\n"),
            second.replace(b"data: ", b"data:"),
            b"id: 7\nretry: 10\n",
            *rest,
        ]
    )
    server.script(Reply(steps=[whole[place : place + 1] for place in range(len(whole))]))
    heard = await listen(model)
    assert (heard.texts, heard.error) == (["你好 ", "🦉"], None)


async def test_parts_of_tool_calls_are_told_and_joined(model, server):
    parts = [
        [{"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}],
        [{"index": 0, "function": {"arguments": "{"}}],
        [{"index": 1, "id": "b", "type": "function", "function": {"name": "g", "arguments": ""}}],
        [{"index": 1, "function": {"arguments": "1"}}],
        [{"index": 0, "function": {"arguments": "}"}}],
    ]
    steps = [chunk(content="so"), *(chunk(tool_calls=part) for part in parts), chunk("tool_calls")]
    server.script(Reply(steps=[*steps, DONE]))
    heard = await listen(model)

    assert [delta.tool_calls for delta in heard.deltas] == [None, *parts]
    assert heard.answer is not None
    assert (heard.answer.content, heard.answer.complete) == ("so", True)
    assert heard.answer.tool_calls == [
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}},
        {"id": "b", "type": "function", "function": {"name": "g", "arguments": "1"}},
    ]


async def test_a_refusal_is_what_the_model_said(model, server):
    server.script(Reply(steps=[chunk(refusal="I "), chunk(refusal="won't."), *END]))
    heard = await listen(model)
    assert heard.texts == ["I ", "won't."]
    assert heard.answer is not None
    assert heard.answer.content == "I won't."


@pytest.mark.parametrize("reason", ["length", "content_filter"])
async def test_a_cut_answer_is_incomplete(model, server, reason):
    server.script(Reply(text="half", finish_reason=reason))
    heard = await listen(model)
    assert heard.answer is not None
    assert (heard.answer.content, heard.answer.complete) == ("half", False)


@pytest.mark.parametrize("reason", ["length", "content_filter"])
async def test_a_cut_answer_without_text_is_not_asked_for_again(model, server, reason):
    server.script(Reply(text="", finish_reason=reason))
    heard = await listen(model)
    assert isinstance(heard.error, ModelError)
    assert not heard.error.may_retry
    assert len(server.requests) == 1


async def test_nul_characters_are_replaced(model, server):
    part = {"index": 0, "id": "\0", "function": {"name": "f", "arguments": "\0"}}
    server.script(Reply(steps=[chunk(content="a\0\\u0000"), chunk(tool_calls=[part]), *END]))
    heard = await listen(model)
    assert heard.texts == ["a\ufffd\\u0000"]
    assert heard.answer is not None
    assert heard.answer.content == "a\ufffd\\u0000"
    assert "\0" not in str(heard.answer.tool_calls)


@pytest.mark.parametrize(
    "steps",
    [
        [chunk(content="yes"), chunk("stop"), DONE],
        [chunk(content="yes"), chunk("stop")],
        [chunk("stop", content="yes"), "break"],
        [chunk("stop", content="yes").rstrip()],
        [chunk("stop", content="yes"), data({"choices": [], "usage": "many"}), DONE],
        [chunk("stop", content="yes"), DONE, HANG],
        [chunk("stop", content="yes"), HANG],
        [data({"choices": [{"delta": None}]}), chunk("stop", content="yes"), DONE, b"data: {\n\n"],
        [chunk("stop", content="yes"), b"data: " + b"x" * 1_100_000 + b"\n\n", DONE],
    ],
)
async def test_what_was_said_to_its_end_is_an_answer_whatever_follows(model, server, steps):
    server.script(Reply(steps=steps))
    heard = await listen(model)
    assert heard.error is None
    assert heard.answer == Answer(
        content="yes",
        tool_calls=None,
        complete=True,
        usage=Usage(),
        model="m",
        finish_reason="stop",
    )


def failed(kind: str | None = None, code: object = None) -> bytes:
    return data({"error": {"message": QUESTION, "type": kind, "code": code}})


BROKEN = [
    pytest.param([chunk(content=""), "break"], ModelUnavailable, id="disconnect"),
    pytest.param([], ModelError, id="nothing"),
    pytest.param([b"<html>planted</html>"], ModelError, id="no-events"),
    pytest.param([chunk(role="assistant")], ModelError, id="no-finish-reason"),
    pytest.param([chunk(role="assistant"), DONE], ModelError, id="done-without-finish-reason"),
    pytest.param([chunk("stop"), DONE], ModelError, id="empty"),
    pytest.param([b'data: {"choices": [{"del\n\n'], ModelError, id="malformed"),
    pytest.param([b"data: \xff\n\n"], ModelError, id="no-text"),
    pytest.param([b"data: " + b'{"a":' * 100_000 + b"\n\n"], ModelError, id="deep"),
    pytest.param([data({"choices": 1})], ModelError, id="odd"),
    pytest.param([failed("server_error")], ModelError, id="error-event"),
    pytest.param([failed(code=500)], ModelError, id="error-code"),
    pytest.param([failed(code=429)], ModelUnavailable, id="rate-limit"),
    pytest.param([b"event: error\ndata: planted\n\n"], ModelError, id="named-error"),
    pytest.param([chunk("error")], ModelError, id="finish-reason-error"),
    pytest.param([HANG], ModelTimeout, id="silent"),
    pytest.param([chunk(role="assistant"), HANG], ModelTimeout, id="silent-after-role"),
    pytest.param([chunk(reasoning_content="hm"), HANG], ModelTimeout, id="stalled-thought"),
    pytest.param([b": alive\n\n", *[0.1, b": alive\n\n"] * 20], ModelTimeout, id="comments"),
]


@pytest.mark.parametrize(("steps", "kind"), BROKEN)
async def test_what_breaks_before_any_text_is_repeated_within_the_budget(
    model, server, recorder, steps, kind
):
    server.script(Reply(steps=steps), Reply(text="at last"))
    heard = await listen(model)
    assert (heard.texts, heard.error) == (["at ", "last"], None)
    assert len(server.requests) == 2
    assert [call.outcome for call in recorder.of(ModelCalled)] == ["ok"]


@pytest.mark.parametrize(("steps", "kind"), BROKEN)
async def test_what_breaks_each_time_has_its_error(model, server, recorder, steps, kind):
    server.script(*[Reply(steps=steps)] * 3)
    heard = await listen(model)
    assert (heard.deltas, heard.answer) == ([], None)
    assert type(heard.error) is kind
    assert heard.error is not None
    assert heard.error.may_retry
    assert "planted" not in repr(heard.error)
    assert len(server.requests) == 2
    assert [call.outcome for call in recorder.of(ModelCalled)] == [kind.code]


@pytest.mark.parametrize(
    "garbled", [b'data: {"choices": [\n\n', b"data: [DO\n\n", data({"error": {"code": "broken"}})]
)
async def test_what_is_garbled_after_the_last_word_costs_no_answer(server, recorder, garbled):
    said, usage = [chunk(content="whole"), chunk("stop")], data({"choices": [], "usage": USAGE})
    server.script(Reply(steps=[*said, garbled, usage, DONE]))
    async with model_of(recorder, base_url=server.base_url) as model:
        heard = await listen(model)
    assert heard.error is None
    assert heard.answer is not None
    assert (heard.answer.content, heard.answer.usage.total_tokens) == ("whole", 5)
    assert len(server.requests) == 1


@pytest.mark.parametrize(("steps", "kind"), [one for one in BROKEN if one.id != "empty"])
async def test_after_text_nothing_is_repeated(model, server, recorder, steps, kind):
    server.script(Reply(steps=[chunk(content="half"), *steps]))
    heard = await listen(model)
    assert (heard.texts, heard.answer) == (["half"], None)
    assert type(heard.error) is kind
    assert len(server.requests) == 1
    assert [call.outcome for call in recorder.of(ModelCalled)] == [kind.code]


async def test_parts_of_a_tool_call_are_not_repeated_either(model, server):
    part = {"index": 0, "id": "a", "function": {"name": "f", "arguments": ""}}
    server.script(Reply(steps=[chunk(tool_calls=[part])]))
    heard = await listen(model)
    assert isinstance(heard.error, ModelError)
    assert len(server.requests) == 1


async def test_opening_and_reading_share_one_budget(server, recorder):
    server.script(Reply(status=500, headers=NOW), Reply(steps=[]), Reply(status=500, headers=NOW))
    async with model_of(recorder, base_url=server.base_url, max_retries=2) as model:
        heard = await listen(model)
    assert isinstance(heard.error, ModelError)
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("reply", "kind", "calls"),
    [
        (Reply(status=500, headers=NOW), ModelError, 2),
        (Reply(status=429, headers=NOW), ModelUnavailable, 2),
        (Reply(status=401), ModelError, 1),
        (Reply(drop="before_headers"), ModelUnavailable, 2),
        (Reply(until=HANG), ModelTimeout, 2),
    ],
)
async def test_troubles_before_the_stream_are_the_clients_to_repeat(
    model, server, reply, kind, calls
):
    server.script(*[reply] * calls)
    heard = await listen(model)
    assert type(heard.error) is kind
    assert len(server.requests) == calls


async def test_the_servers_wait_is_obeyed(model, server):
    server.script(Reply(status=429, headers={"retry-after": "0.3"}))
    started = time.monotonic()
    heard = await listen(model)
    assert heard.error is None
    assert time.monotonic() - started >= 0.3


@pytest.mark.parametrize(
    "error", [failed(code="context_length_exceeded"), failed("exceed_context_size_error", 400)]
)
async def test_a_context_that_is_too_long_may_show_in_the_stream(model, server, error):
    server.script(Reply(steps=[error]))
    heard = await listen(model)
    assert type(heard.error) is ContextTooLarge
    assert len(server.requests) == 1


async def test_a_refused_request_may_show_in_the_stream(model, server):
    server.script(Reply(steps=[failed("invalid_request_error")]))
    heard = await listen(model)
    assert isinstance(heard.error, ModelError)
    assert not heard.error.may_retry
    assert len(server.requests) == 1


async def test_an_answer_and_an_event_have_a_largest_size(model, server):
    piece = chunk(content="x" * (EVENT_BYTES_MAX // 2))
    server.script(Reply(steps=[piece] * (2 * ANSWER_BYTES_MAX // EVENT_BYTES_MAX + 1)))
    heard = await listen(model)
    assert isinstance(heard.error, ModelError)
    assert sum(len(text) for text in heard.texts) == ANSWER_BYTES_MAX

    server.script(Reply(steps=[chunk(content="x" * EVENT_BYTES_MAX)]))
    heard = await listen(model)
    assert isinstance(heard.error, ModelError)
    assert heard.deltas == []

    server.script(Reply(body=b" " * (2 * ANSWER_BYTES_MAX + 1)))
    with pytest.raises(ModelError):
        await model.answer(PROMPT, deadline_seconds=10)
    assert len(server.requests) == 3


async def test_a_slow_first_piece_is_waited_for_and_a_silence_is_borne(model, server):
    server.script(Reply(steps=[0.3, chunk(content="a"), 0.2, chunk(content="b"), 0.2, *END]))
    heard = await listen(model)
    assert (heard.texts, heard.error) == (["a", "b"], None)


async def test_thinking_is_no_silence(model, server):
    thoughts: list[Step] = [0.2, chunk(reasoning_content="hm")]
    server.script(Reply(steps=[*thoughts * 5, chunk(content="a"), *END]))
    heard = await listen(model)
    assert (heard.texts, heard.error) == (["a"], None)


async def test_headers_and_first_piece_share_one_time(model, server):
    server.script(*[Reply(delay_seconds=0.3, steps=[0.4, chunk(content="late"), *END])] * 2)
    heard = await listen(model)
    assert isinstance(heard.error, ModelTimeout)
    assert len(server.requests) == 2


async def test_a_reader_may_take_its_time(model, server):
    server.script(Reply(text="a b c"))
    texts: list[str] = []
    async with aclosing(model.stream(PROMPT, deadline_seconds=10)) as pieces:
        async for piece in pieces:
            await asyncio.sleep(0.5)
            if isinstance(piece, Delta):
                texts.append(piece.text)
    assert texts == ["a ", "b ", "c"]


@pytest.mark.parametrize(
    ("steps", "texts"),
    [([HANG], []), ([0.1, chunk(content="a"), HANG], ["a"])],
)
async def test_the_deadline_ends_it_at_every_stage(server, recorder, steps, texts):
    server.script(Reply(steps=steps))
    async with model_of(recorder, base_url=server.base_url) as model:
        started = time.monotonic()
        heard = await listen(model, seconds=0.4)
    assert time.monotonic() - started < 2
    assert isinstance(heard.error, ModelTimeout)
    assert heard.texts == texts
    assert len(server.requests) == 1


async def test_the_deadline_holds_over_all_attempts(server, recorder):
    server.script(*[Reply(steps=[0.3])] * 9)
    async with model_of(recorder, base_url=server.base_url, max_retries=9) as model:
        started = time.monotonic()
        heard = await listen(model, seconds=1)
    assert time.monotonic() - started < 1.5
    assert isinstance(heard.error, ChatMemoryError)


@pytest.mark.parametrize(
    "steps", [[chunk(content="a"), HANG], [chunk(content="a"), 0.001] * 10_000]
)
async def test_whoever_closes_the_stream_hangs_up(model, server, recorder, steps):
    server.script(Reply(steps=steps))
    pieces = model.stream(PROMPT, deadline_seconds=10)
    assert await anext(pieces) == Delta(text="a")
    closed = time.monotonic()
    await pieces.aclose()
    await eventually(lambda: bool(server.hung_up), within_seconds=2)
    assert server.hung_up[0] - closed < 1
    assert [call.outcome for call in recorder.of(ModelCalled)] == ["cancelled"]


@pytest.mark.parametrize(
    "steps", [[HANG], [chunk(role="assistant"), HANG], [chunk(content="a"), HANG]]
)
async def test_a_cancelled_stream_hangs_up(model, server, recorder, steps):
    server.script(Reply(steps=steps))
    listening = asyncio.create_task(listen(model))
    await eventually(lambda: bool(server.requests), within_seconds=2)
    await asyncio.sleep(0.1)
    cancelled = time.monotonic()
    listening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await listening
    await eventually(lambda: bool(server.hung_up), within_seconds=2)
    assert server.hung_up[0] - cancelled < 1
    assert [call.outcome for call in recorder.of(ModelCalled)] == ["cancelled"]


async def test_a_stalled_stream_is_hung_up(model, server):
    server.script(Reply(steps=[chunk(content="a"), HANG]))
    heard = await listen(model)
    assert isinstance(heard.error, ModelTimeout)
    await eventually(lambda: bool(server.hung_up), within_seconds=1)


async def test_a_stream_that_was_read_leaves_its_connection_to_the_next(model, server):
    for _ in range(3):
        heard = await listen(model)
        assert heard.error is None
    assert len(set(server.callers)) == 1


async def test_closing_the_model_ends_its_streams(model, server):
    server.script(Reply(steps=[chunk(content="a"), HANG]))
    pieces = model.stream(PROMPT, deadline_seconds=10)
    await anext(pieces)
    await model.close()
    with pytest.raises(ModelUnavailable):
        await anext(pieces)
    heard = await listen(model)
    assert isinstance(heard.error, ModelUnavailable)
    assert len(server.requests) == 1


async def test_no_error_tells_a_secret(model, server):
    server.script(*[Reply(steps=[failed(QUESTION, KEY)])] * 2)
    heard = await listen(model)
    assert "planted" not in repr(heard.error)


async def test_many_streams_at_once_keep_apart(model, server):
    prompts = [
        msgspec.structs.replace(PROMPT, messages=({"role": "user", "content": f"{n} 你好"},))
        for n in range(50)
    ]
    heard = await asyncio.gather(*(listen(model, prompt) for prompt in prompts))
    assert [one.answer.content for one in heard if one.answer] == [
        f"echo: {n} 你好" for n in range(50)
    ]


async def test_without_a_model_every_question_says_why():
    with pytest.raises(ModelUnavailable, match="set OPENAI_API_KEY"):
        await anext(NoModel("No model: set OPENAI_API_KEY.").stream(PROMPT, deadline_seconds=1))
