"""The API behind a real server: raw paths, bodies and heads without end, and a clean end."""

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import httpx
import msgspec
import pytest

from service.api.operations import Operations, create_operations_app
from service.api.protocol import HEAD_BYTES_MAX
from service.api.server import Listener, ServiceServer
from service.domain.turns import Answer, Delta, Prompt, Usage
from service.settings import Settings
from tests.support.api import BODY_BYTES_MAX, Client, api_client
from tests.support.polling import eventually

GRACE_SECONDS = 1.0


class GatedModel:
    """Model that answers when it may."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.gate = asyncio.Event()

    async def answer(self, prompt: Prompt, *, deadline_seconds: float) -> Answer:
        self.asked.set()
        await self.gate.wait()
        return Answer(content="yes", tool_calls=None, complete=True, usage=Usage(), model="m")

    async def stream(
        self, prompt: Prompt, *, deadline_seconds: float
    ) -> AsyncGenerator[Delta | Answer]:
        yield await self.answer(prompt, deadline_seconds=deadline_seconds)


class Served(msgspec.Struct):
    server: ServiceServer
    serving: asyncio.Task[None]
    model: GatedModel
    client: Client

    @property
    def port(self) -> int:
        return self.server.ports[0]

    def url(self, path: str, *, listener: int = 0) -> str:
        return f"http://127.0.0.1:{self.server.ports[listener]}{path}"


def application(client: Client) -> Any:
    """The application that the client calls in process."""
    transport: Any = client.http._transport
    return transport.app


@asynccontextmanager
async def served(settings: Settings | None = None) -> AsyncGenerator[Served]:
    model = GatedModel()
    async with api_client(model, settings) as client:
        operations = Operations(
            render_metrics=lambda: (b"# none\n", "text/plain"), journal=None, shards=0
        )
        ops = create_operations_app(client.readiness, operations, client.recorder)
        server = ServiceServer(
            [
                Listener(app=application(client), host="127.0.0.1", port=0),
                Listener(app=ops, host="127.0.0.1", port=0),
            ],
            drain=client.readiness.drain,
            grace_seconds=GRACE_SECONDS,
        )
        started = asyncio.Event()
        serving = asyncio.create_task(server.serve(started=started.set))
        await started.wait()
        try:
            yield Served(server, serving, model, client)
        finally:
            model.gate.set()
            server.stop()
            await asyncio.wait_for(serving, 10)


@pytest.fixture
async def running() -> AsyncGenerator[Served]:
    async with served() as running:
        yield running


@asynccontextmanager
async def connection(port: int):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def send_until_answered(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    piece: bytes,
    pieces_max: int,
) -> tuple[int, bytes]:
    """What was sent, in pieces, until the server answered, and the answer's head."""
    answer = asyncio.ensure_future(reader.readuntil(b"\r\n\r\n"))
    sent = 0
    while not answer.done() and sent < pieces_max * len(piece):
        writer.write(piece)
        sent += len(piece)
        await writer.drain()
        await asyncio.sleep(0.001)
    return sent, await asyncio.wait_for(answer, 5)


@pytest.mark.parametrize("session_id", ["a/b", "%2F", "a%b", ":{}", "a b", "🦉", "..", "."])
async def test_an_id_survives_a_real_servers_path(running, session_id):
    segment = "".join(f"%{byte:02X}" for byte in session_id.encode())
    async with httpx.AsyncClient() as http:
        body = {"messages": [{"role": "user", "content": "x"}]}
        url = running.url(f"/v1/sessions/{segment}")
        assert (await http.post(f"{url}/messages", json=body)).status_code == 201
        found = (await http.get(url)).json()
    assert (found["id"], found["message_count"]) == (session_id, 1)


async def test_a_body_without_end_is_refused_while_it_comes(running):
    async with connection(running.port) as (reader, writer):
        writer.write(
            b"POST /chat HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        piece = b"1000\r\n" + b"x" * 4096 + b"\r\n"
        sent, head = await send_until_answered(reader, writer, piece, 10_000)
    assert head.startswith(b"HTTP/1.1 413 ")
    assert b"application/problem+json" in head
    assert BODY_BYTES_MAX < sent < 10_000 * len(piece)


async def test_an_announced_body_is_refused_before_it_comes(running):
    async with connection(running.port) as (reader, writer):
        writer.write(
            b"POST /chat HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n" % (BODY_BYTES_MAX + 1)
        )
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    assert head.startswith(b"HTTP/1.1 413 ")


async def test_a_head_without_end_is_refused(running):
    async with connection(running.port) as (reader, writer):
        writer.write(b"GET /health/live HTTP/1.1\r\nhost: x\r\n")
        await writer.drain()
        line = b"x: " + b"y" * 4096 + b"\r\n"
        try:
            _, head = await send_until_answered(reader, writer, line, 1000)
        except (ConnectionError, asyncio.IncompleteReadError):
            # The server closed while we were writing: its answer may be lost, not the refusal.
            return
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"application/problem+json" in head


async def test_a_long_head_and_a_body_in_its_last_packet_are_fine(running):
    body = b'{"messages": [{"role": "user", "content": "' + b"x" * 900 + b'"}]}'
    async with connection(running.port) as (reader, writer):
        for _ in range(3):
            writer.write(b"POST /v1/sessions/s/messages HTTP/1.1\r\nhost: x\r\n")
            await writer.drain()
            await asyncio.sleep(0.01)
            writer.write(b"x-long: " + b"y" * (HEAD_BYTES_MAX - 2000) + b"\r\n")
            await writer.drain()
            await asyncio.sleep(0.01)
            head = b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
            writer.write(head + body)
            answer = await asyncio.wait_for(reader.readuntil(b"}"), 5)
            assert answer.startswith(b"HTTP/1.1 201 ")
            await asyncio.wait_for(reader.readuntil(b"}"), 5)


async def test_what_is_no_http_is_a_problem_too(running):
    async with connection(running.port) as (reader, writer):
        writer.write(b"NONSENSE\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), 5)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head
    problem = msgspec.json.decode(body)
    assert (problem["status"], problem["code"]) == (400, "invalid_request")
    assert f"x-request-id: {problem['trace_id']}".encode() in head


async def test_a_fault_in_the_middle_breaks_an_export(database_url):
    messages = [{"role": "user", "content": "x" * 900}] * 20
    settings = Settings(store="postgres", database_url=database_url)
    async with served(settings) as running, httpx.AsyncClient(timeout=10) as http:
        body = {"user_id": "ada", "messages": messages}
        await http.post(running.url("/v1/sessions/s/messages"), json=body)
        sql = await asyncpg.connect(database_url)
        # Far more than the sockets between the two hold.
        await sql.execute(
            "INSERT INTO messages (session_key, id, tenant, role, body)"
            " SELECT m.session_key, ('00000000' || substr(gen_random_uuid()::text, 9))::uuid,"
            " m.tenant, m.role, m.body FROM messages m, generate_series(1, 500)"
        )
        export = running.url("/v1/users/ada/export")
        whole = (await http.get(export)).text.splitlines()
        assert whole[-1] == '{"type":"end","sessions":1,"messages":10020}'

        lines: list[str] = []

        async def read_and_break() -> None:
            async with http.stream("GET", export) as response:
                assert response.status_code == 200
                async for line in response.aiter_lines():
                    if not lines:
                        await sql.execute("ALTER TABLE messages RENAME TO hidden")
                    lines.append(line)

        with pytest.raises(httpx.RemoteProtocolError):
            await read_and_break()
        assert 0 < len(lines) < 10_000
        assert '"type":"end"' not in lines[-1]
        await sql.close()


async def test_a_signal_says_not_ready_and_lets_the_turn_end():
    async with served() as running, httpx.AsyncClient() as http:
        ready, chat = running.url("/health/ready", listener=1), running.url("/chat")
        assert (await http.get(ready)).status_code == 200
        turn = asyncio.create_task(http.post(chat, json={"user_id": "ada", "message": "hi"}))
        await running.model.asked.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        await closed(running.port)

        async with httpx.AsyncClient() as fresh:
            draining = await fresh.get(ready)
        assert (draining.status_code, draining.json()["draining"]) == (503, True)
        running.model.gate.set()
        assert (await turn).json()["state"] == "completed"
        await asyncio.wait_for(running.serving, 5)


async def test_the_grace_time_ends_what_does_not_end():
    async with served() as running, httpx.AsyncClient() as http:
        body = {"user_id": "ada", "message": "hi"}
        turn = asyncio.create_task(http.post(running.url("/chat"), json=body))
        await running.model.asked.wait()
        began = time.monotonic()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(running.serving, GRACE_SECONDS + 3)
        assert time.monotonic() - began >= GRACE_SECONDS
        await over(turn)


async def test_a_second_signal_ends_at_once():
    async with served() as running, httpx.AsyncClient() as http:
        body = {"user_id": "ada", "message": "hi"}
        turn = asyncio.create_task(http.post(running.url("/chat"), json=body))
        await running.model.asked.wait()
        began = time.monotonic()
        os.kill(os.getpid(), signal.SIGTERM)
        await closed(running.port)
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.wait_for(running.serving, 5)
        assert time.monotonic() - began < GRACE_SECONDS
        response = await turn
        assert (response.status_code, response.json()["code"]) == (503, "draining")


async def test_a_port_in_use_stops_the_start():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = (
            "import asyncio\n"
            "from service.api.server import Listener, ServiceServer\n"
            f"ports = 0, {port}\n"
            "listeners = [Listener(app=print, host='127.0.0.1', port=port) for port in ports]\n"
            "server = ServiceServer(listeners, drain=lambda: None, grace_seconds=1)\n"
            "asyncio.run(server.serve())\n"
        )
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", command, stderr=asyncio.subprocess.PIPE
        )
        _, said = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode not in {0, None}
    assert str(port) in said.decode()


async def closed(port: int) -> None:
    async def refused() -> bool:
        try:
            async with connection(port):
                return False
        except ConnectionError:
            return True

    await eventually(refused, 5)


async def over(turn: "asyncio.Task[httpx.Response]") -> None:
    """Its connection was cut or it was answered an error: either tells the caller to try again."""
    try:
        assert (await asyncio.wait_for(turn, 5)).status_code >= 500
    except httpx.TransportError:
        return
