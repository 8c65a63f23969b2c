"""Imports behind a real server: refused bodies, stalled and lost clients, bounded memory."""

import asyncio
import tracemalloc
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import httpx
import msgspec
import pytest

from service.adapters.openai.model import NoModel
from service.api.server import Listener, ServiceServer
from service.core import importing
from service.settings import Settings
from tests.support.api import Client, api_client
from tests.support.polling import eventually

LINE = b'{"role":"user","content":"' + b"x" * 200 + b'"}\n'
MIB = 1024 * 1024


class Served(msgspec.Struct):
    port: int
    archive: asyncpg.Connection
    client: Client

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1/sessions/s"

    async def stored(self) -> int:
        return await self.archive.fetchval("SELECT count(*) FROM messages")

    async def busy(self) -> int:
        """Transactions of imports that are open."""
        return await self.archive.fetchval(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )


@asynccontextmanager
async def serving(settings: Settings, **options: Any) -> AsyncGenerator[Served]:
    async with api_client(NoModel("none"), settings, **options) as client:
        transport: Any = client.http._transport
        server = ServiceServer(
            [Listener(app=transport.app, host="127.0.0.1", port=0)],
            drain=client.readiness.drain,
            grace_seconds=1,
        )
        started = asyncio.Event()
        task = asyncio.create_task(server.serve(started=started.set))
        await started.wait()
        archive = await asyncpg.connect(settings.database_url)
        try:
            yield Served(server.ports[0], archive, client)
        finally:
            await archive.close()
            server.stop()
            await asyncio.wait_for(task, 10)


@pytest.fixture
async def served(hybrid_settings: Settings) -> AsyncGenerator[Served]:
    async with serving(hybrid_settings, request_seconds=0.5) as opened:
        yield opened


class Socket:
    """A connection on which requests are written by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def head(self, *, length: int | None = None) -> None:
        size = b"transfer-encoding: chunked" if length is None else b"content-length: %d" % length
        self.writer.write(
            b"POST /v1/sessions/s/import HTTP/1.1\r\nhost: x\r\n"
            b"content-type: application/jsonl\r\n" + size + b"\r\n\r\n"
        )

    async def send(self, data: bytes) -> None:
        for start in range(0, len(data), 65536):
            self.writer.write(data[start : start + 65536])
            await self.writer.drain()

    async def answer(self) -> tuple[int, dict[str, Any]]:
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 10)
        names = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
        body = await self.reader.readexactly(int(names[b"content-length"]))
        return int(head.split(b" ")[1]), msgspec.json.decode(body)


@asynccontextmanager
async def connected(served: Served) -> AsyncGenerator[Socket]:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    try:
        yield Socket(reader, writer)
    finally:
        writer.close()


async def test_an_import_may_take_longer_than_a_request_and_be_larger(served):
    async with connected(served) as socket:
        socket.head(length=100_000 * len(LINE))
        await socket.send(LINE * 50_000)
        await asyncio.sleep(0.6)  # Requests end after half a second here: this one does not.
        await socket.send(LINE * 50_000)
        status, answer = await socket.answer()
    assert (status, answer["imported"]) == (201, 100_000)
    assert await served.stored() == 100_000


@pytest.mark.parametrize(
    ("middle", "status", "field"),
    [
        (b'{"role":"user"\n', 400, "line 5001"),
        (b'{"role":"user","content":"' + b"x" * 10 * MIB + b'"}\n', 413, "line 5001"),
    ],
)
async def test_a_refused_import_leaves_its_connection_usable(served, middle, status, field):
    body = LINE * 5000 + middle + LINE * 5000
    async with connected(served) as socket:
        for _ in range(2):
            socket.head(length=len(body))
            await socket.send(body)
            answered, problem = await socket.answer()
            assert (answered, problem["errors"][0]["field"]) == (status, field)
        socket.head(length=len(LINE))
        await socket.send(LINE)
        assert (await socket.answer())[0] == 201
    assert await served.stored() == 1


async def test_an_announced_body_above_the_limit_is_refused_before_it_comes(served):
    async with connected(served) as socket:
        socket.head(length=2**30 + 1)
        status, problem = await socket.answer()
    assert (status, problem["errors"][0]["field"]) == (413, "body")


async def test_a_client_that_leaves_stores_nothing(served):
    async with connected(served) as socket:
        socket.head(length=10_000 * len(LINE))
        await socket.send(LINE * 5000)
        await eventually(served.busy, 5)
    await eventually(lambda: not_busy(served), 5)
    assert await served.stored() == 0
    async with httpx.AsyncClient() as http:
        headers = {"content-type": "application/jsonl"}
        assert (await http.post(f"{served.url}/import", content=LINE, headers=headers)).is_success


async def test_a_client_that_stalls_is_told_and_stores_nothing(hybrid_settings, monkeypatch):
    monkeypatch.setattr(importing, "STALL_SECONDS", 0.3)
    async with serving(hybrid_settings) as served, connected(served) as socket:
        socket.head(length=10_000 * len(LINE))
        await socket.send(LINE * 5000)
        status, problem = await socket.answer()
        assert (status, problem["code"]) == (400, "invalid_request")
        assert await served.stored() == 0
        assert await served.busy() == 0


async def test_an_import_that_takes_too_long_is_ended(hybrid_settings):
    async with (
        serving(hybrid_settings, import_seconds=0.5) as served,
        connected(served) as socket,
    ):
        socket.head(length=10_000 * len(LINE))
        await socket.send(LINE * 5000)
        status, problem = await socket.answer()
        assert (status, problem["code"]) == (503, "overloaded")
        assert await served.stored() == 0


async def test_an_import_of_any_size_takes_the_same_memory(served):
    async def body() -> AsyncGenerator[bytes]:
        for _ in range(64):
            yield LINE * 2000

    async with httpx.AsyncClient(timeout=50) as http:
        tracemalloc.start()
        try:
            headers = {"content-type": "application/jsonl"}
            response = await http.post(f"{served.url}/import", content=body(), headers=headers)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert response.json()["imported"] == 128_000
    # The body is 29 MB; a batch is a thousand lines, as lines, values and rows.
    assert peak < 12 * MIB


async def not_busy(served: Served) -> bool:
    return await served.busy() == 0
