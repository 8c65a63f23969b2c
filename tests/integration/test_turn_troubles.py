"""Callers that leave, read slowly or not at all, and deadlines, over real servers."""

import asyncio
import socket
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec
import pytest

from service.settings import Settings
from tests.support.api import problem
from tests.support.model_server import ModelServer, Reply
from tests.support.openai_models import model_of
from tests.support.polling import eventually
from tests.support.scripted_model import answer_of
from tests.support.serving import Process, process
from tests.support.stores import Recorder

CHAT = "/v1/sessions/s/chat"
QUESTION = "one two three four"
ASKED: dict[str, Any] = {"message": QUESTION, "stream": True}
SAID = f"echo: {QUESTION}"
WHOLE = [("user", QUESTION, None), ("assistant", SAID, None)]
KEYED = {"Idempotency-Key": "k"}


@pytest.fixture(params=["memory", "postgres", "redis", "hybrid"])
def settings(request: pytest.FixtureRequest) -> Settings:
    of_postgres = request.param in {"postgres", "hybrid"}
    of_redis = request.param in {"redis", "hybrid"}
    return Settings(
        store=request.param,
        database_url=request.getfixturevalue("database_url") if of_postgres else None,
        redis_url=request.getfixturevalue("redis_url") if of_redis else None,
    )


@pytest.fixture
async def here(settings: Settings) -> AsyncGenerator[Process]:
    async with process(settings) as opened:
        yield opened


class Caller:
    """One that may stop reading, or leave, at any byte."""

    def __init__(self, at: Process, *, receive_bytes: int | None = None) -> None:
        self._address = (at.http.base_url.host, at.http.base_url.port)
        self._socket = socket.socket()
        if receive_bytes is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self._socket.settimeout(0)
        self.received = bytearray()

    async def ask(self, body: dict[str, Any], *, of_it: float = 1.0) -> None:
        """Sends this share of the request."""
        data = msgspec.json.encode(body)
        head = (
            f"POST {CHAT} HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n"
            f"idempotency-key: k\r\ncontent-length: {len(data)}\r\n\r\n"
        )
        request = head.encode() + data
        loop = asyncio.get_running_loop()
        await loop.sock_connect(self._socket, self._address)
        await loop.sock_sendall(self._socket, request[: int(len(request) * of_it)])

    async def read(self, count: int = 65536) -> bytes:
        got = await asyncio.get_running_loop().sock_recv(self._socket, count)
        self.received += got
        return got

    async def until(self, text: bytes) -> None:
        while text not in self.received:
            assert await self.read(), self.received

    def leave(self) -> None:
        """At once, as a process that is killed does: what was not read is reset."""
        linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._socket.close()


@pytest.mark.parametrize("share", [0.2, 0.99, 1.0])
async def test_who_leaves_before_an_answer_is_answered_once_when_it_asks_again(here, share):
    caller = Caller(here)
    await caller.ask(ASKED, of_it=share)
    caller.leave()
    again = await here.http.post(CHAT, json=ASKED | {"stream": False}, headers=KEYED)
    assert again.status_code == 200, again.text
    assert again.json()["response"] == SAID
    assert await here.messages() == WHOLE


class HeldEnd:
    """Holds the end of a turn back, just before it is stored."""

    def __init__(self, at: Process, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.goes_on = asyncio.Event(), asyncio.Event()
        turns = at.client.use_cases.chat._turns
        finish = turns.finish

        async def held(command: Any) -> Any:
            self.reached.set()
            await self.goes_on.wait()
            return await finish(command)

        monkeypatch.setattr(turns, "finish", held)


@pytest.mark.parametrize("phase", ["asked", "started", "told", "ending", "ended"])
async def test_who_leaves_a_stream_in_any_phase_loses_nothing(here, monkeypatch, phase):
    gate, words, end = asyncio.Event(), asyncio.Semaphore(0), HeldEnd(here, monkeypatch)
    here.model.gate, here.model.word_gate = gate, words
    caller = Caller(here)

    async def leave_in(now: str, told: bytes | None = None) -> None:
        if now == phase:
            if told is not None:
                await caller.until(told)
            caller.leave()

    await caller.ask(ASKED)
    await here.model.asked.wait()
    await leave_in("asked")
    await leave_in("started", b"turn.started")
    gate.set()
    words.release()
    await leave_in("told", b"event: delta")
    for _ in range(10):
        words.release()
    await end.reached.wait()
    await leave_in("ending", SAID.rpartition(" ")[2].encode())
    end.goes_on.set()
    await leave_in("ended", b"turn.completed")
    await once_whole(here)


@pytest.mark.parametrize("phase", ["asked", "ending"])
async def test_who_leaves_a_plain_turn_in_any_phase_loses_nothing(here, monkeypatch, phase):
    gate, end = asyncio.Event(), HeldEnd(here, monkeypatch)
    here.model.gate = gate
    caller = Caller(here)
    await caller.ask(ASKED | {"stream": False})
    await here.model.asked.wait()
    if phase == "asked":
        caller.leave()
    gate.set()
    await end.reached.wait()
    if phase == "ending":
        caller.leave()
    end.goes_on.set()
    await once_whole(here)


async def once_whole(at: Process) -> None:
    """The answer is stored, once, and is what a repeated call gets."""

    async def whole() -> bool:
        return await at.messages() == WHOLE

    await eventually(whole, within_seconds=5)
    again = await at.http.post(CHAT, json=ASKED | {"stream": False}, headers=KEYED)
    assert again.headers["Idempotency-Replayed"] == "true"
    assert again.json()["response"] == SAID
    assert await at.messages() == WHOLE
    assert len(at.model.prompts) == 1


LONG = "w" * 20_000 + " "
TIMES = 300


async def test_a_reader_that_takes_nothing_is_left_and_its_turn_is_whole():
    settings = Settings(store="memory")
    async with process(settings, unread_seconds=0.5) as here:
        here.model.script.append(answer_of(LONG * TIMES))
        caller = Caller(here, receive_bytes=4096)
        await caller.ask(ASKED)
        await caller.until(b"turn.started")

        async def stored() -> bool:
            return len(await here.messages()) == 2

        # The turn does not wait for its reader.
        await eventually(stored, within_seconds=10)
        [_, (_, content, _)] = await here.messages()
        assert content == f"echo: {LONG * TIMES}"

        # What is in the buffers can be read still; then the connection is over.
        await asyncio.sleep(1)
        with suppress(ConnectionResetError):
            while await caller.read():
                pass
        assert len(caller.received) < len(content) / 2
        caller.leave()


async def test_a_slow_reader_gets_all_of_it_and_holds_nobody_up():
    async with process(Settings(store="memory"), unread_seconds=5) as here:
        here.model.script.append(answer_of(LONG * 50))
        caller = Caller(here, receive_bytes=4096)
        await caller.ask(ASKED)
        await caller.until(b"turn.started")
        beside = await here.http.post("/v1/sessions/other/chat", json={"message": "hi"})
        assert beside.status_code == 200
        await caller.until(b"\r\n0\r\n\r\n")
        # Each word as a delta, and all of them in the turn at the end, as text and as message.
        assert caller.received.count(LONG.strip().encode()) == 3 * 50
        caller.leave()


HANG = asyncio.Event()
DELTA = b'data: {"choices":[{"delta":{"content":"half of it"}}]}\n\n'


@pytest.mark.parametrize(
    ("reply", "kept"),
    [
        (Reply(until=HANG), False),
        (Reply(steps=[HANG]), False),
        (Reply(steps=[b": nothing yet\n\n", HANG]), False),
        (Reply(steps=[DELTA, HANG]), True),
        (Reply(steps=[DELTA, *[0.1, DELTA] * 100]), True),
    ],
    ids=["headers", "first byte", "first piece", "silence", "talk"],
)
async def test_a_stream_ends_at_its_deadline_wherever_its_model_is(reply, kept):
    async with asking(reply, turn_deadline_seconds=0.6) as (here, server):
        began = time.monotonic()
        events = [event async for event in here.events(CHAT, json=ASKED, headers=KEYED)]
        assert 0.5 < time.monotonic() - began < 5
        turn = events[-1].data
        assert (turn["error"]["code"], turn["error"]["status"]) == ("model_timeout", 504)
        assert turn["state"] == ("incomplete" if kept else "failed")
        told = "".join(event.data["text"] for event in events if event.name == "delta")
        assert bool(told) == kept
        kept_message = [("assistant", told, "incomplete")] if kept else []
        assert await here.messages() == [("user", QUESTION, None), *kept_message]

        # What was kept is the answer of this key; a failed turn is run again by it.
        server.script(Reply(text="yes"))
        after = await here.http.post(CHAT, json=ASKED | {"stream": False}, headers=KEYED)
        assert after.json()["response"] == (told if kept else "yes"), after.text
        assert len(await here.messages()) == 2


@pytest.mark.parametrize(
    "reply",
    [
        Reply(until=HANG),
        Reply(status=500, until=HANG),
        Reply(status=429, headers={"retry-after": "9"}),
    ],
    ids=["silence", "silence and trouble", "a wait beyond it"],
)
async def test_a_plain_turn_ends_at_its_deadline(reply):
    async with asking(reply, turn_deadline_seconds=0.6) as (here, server):
        began = time.monotonic()
        response = await here.http.post(CHAT, json={"message": QUESTION}, headers=KEYED)
        assert time.monotonic() - began < 5
        assert response.status_code in {503, 504}, response.text
        assert await here.messages() == [("user", QUESTION, None)]
        server._script.clear()
        server.script(Reply(text="yes"))
        after = await here.http.post(CHAT, json={"message": QUESTION}, headers=KEYED)
        assert after.json()["response"] == "yes", after.text
        assert len(await here.messages()) == 2


async def test_who_joins_a_turn_or_waits_for_one_has_a_deadline_too():
    settings = Settings(store="memory", turn_wait_seconds=0.4)
    async with process(settings, turn_deadline_seconds=0.5) as here:
        here.model.gate = asyncio.Event()
        first = asyncio.ensure_future(
            here.http.post(CHAT, json={"message": QUESTION}, headers=KEYED)
        )
        await here.model.asked.wait()
        began = time.monotonic()
        joins, waits = await asyncio.gather(
            here.http.post(CHAT, json={"message": QUESTION}, headers=KEYED),
            here.http.post(CHAT, json={"message": "another", "on_busy": "wait"}),
        )
        assert time.monotonic() - began < 2
        problem(joins, 409, "request_running")
        problem(waits, 409, "session_busy")
        here.model.gate.set()
        assert (await first).status_code == 200
        assert len(await here.messages()) == 2


@asynccontextmanager
async def asking(reply: Reply, **options: Any) -> AsyncGenerator[tuple[Process, ModelServer]]:
    """A service that asks a model's server over HTTP."""
    async with (
        ModelServer() as server,
        model_of(Recorder(), base_url=server.base_url) as model,
        process(Settings(store="memory"), asks=model, **options) as here,
    ):
        server.script(reply)
        yield here, server
