"""The command behind `make run`, as a new user would try it."""

import asyncio
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from service.dev.postgres import EmbeddedPostgres
from tests.support.model_server import ModelServer, Reply
from tests.support.polling import eventually
from tests.support.processes import ROOT, Running, service


async def say(running: Running, text: str) -> dict[str, Any]:
    async with httpx.AsyncClient(timeout=60) as http:
        body = {"user_id": "ada", "message": text, "max_output_tokens": 30}
        response = await http.post(f"{running.url}/chat", json=body)
    assert response.status_code == 200, response.text
    return response.json()


async def history(running: Running) -> dict[str, Any]:
    async with httpx.AsyncClient() as http:
        return (await http.get(f"{running.url}/history/ada")).json()


async def flushed(running: Running) -> bool:
    async with httpx.AsyncClient() as http:
        return (await http.get(f"{running.ops_url}/ops/journal")).json()["entries"] == 0


def processes_of(data_dir: Path) -> list[str]:
    """Command lines of live processes that work in or were told of the directory."""
    found: list[str] = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            place = str((process / "cwd").readlink())
        except OSError:
            continue
        if str(data_dir) in line or place.startswith(str(data_dir)):
            found.append(line)
    return found


@pytest.mark.timeout(240)
async def test_a_conversation_survives_restarts_and_the_loss_of_redis(tmp_path):
    data_dir = tmp_path / "data"
    environment = {"DATA_DIR": str(data_dir)}
    async with ModelServer() as model:
        own_model = {"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": model.base_url}
        async with service("dev", environment=environment | own_model, folder=tmp_path) as running:
            await running.until_ready()
            first = await say(running, "my name is Ada")
            second = await say(running, "what is my name?")
            assert [m["content"] for m in model.requests[1]["messages"]] == [
                "my name is Ada",
                first["response"],
                "what is my name?",
            ]
            before = await history(running)
            assert [m["content"] for m in before["messages"]][3] == second["response"]
            assert len(before["messages"]) == 4
            assert 0 < before["ttl"] <= 1800
            await eventually(lambda: flushed(running), within_seconds=1)
            running.send(signal.SIGINT)
            assert await running.ended() == 0
    assert processes_of(data_dir) == []

    await rows_are_in_postgres(data_dir, 4)
    shutil.rmtree(data_dir / "valkey")

    # Without a key the local model answers.
    async with service("dev", environment=environment, folder=tmp_path) as running:
        await running.until_ready()
        assert (await history(running))["messages"] == before["messages"]
        third = await say(running, "Say hello.")
        assert (third["model"], third["context"]["messages"]) == ("smollm2-135m-instruct", 4)
        assert third["response"]
        running.process.kill()
        await running.ended()

    async def nothing_left() -> bool:
        return processes_of(data_dir) == []

    await eventually(nothing_left, within_seconds=10)

    async with service("dev", environment=environment | own_model, folder=tmp_path) as running:
        await running.until_ready()
        assert len((await history(running))["messages"]) == 6


async def rows_are_in_postgres(data_dir: Path, count: int) -> None:
    server = EmbeddedPostgres(data_dir / "postgres")
    await server.start()
    try:
        connection = await asyncpg.connect(server.url)
        assert await connection.fetchval("SELECT count(*) FROM messages") == count
        assert await connection.fetchval("SELECT message_count FROM sessions") == count
        await connection.close()
    finally:
        await server.stop()


async def test_without_any_model_chat_says_what_to_set(tmp_path, database_url, redis_url):
    environment = {"DATABASE_URL": database_url, "REDIS_URL": redis_url}
    async with (
        service("serve", environment=environment, folder=tmp_path) as running,
        httpx.AsyncClient() as http,
    ):
        await running.until_ready()
        response = await http.post(f"{running.url}/chat", json={"user_id": "ada", "message": "hi"})
        assert (response.status_code, response.json()["code"]) == (503, "model_unavailable")
        assert "OPENAI_API_KEY" in response.json()["detail"]


@pytest.mark.parametrize(
    ("environment", "words", "status", "said"),
    [
        ({}, ("serve",), 2, "DATABASE_URL: is required with STORE=hybrid"),
        ({"STORE": "memory", "HOST": "0.0.0.0"}, ("serve",), 2, "HOST: AUTH=off"),
        ({"PORT": "x"}, ("flush",), 2, "PORT: Expected `int`"),
        (
            {"STORE": "redis", "REDIS_URL": "redis://x"},
            ("flush",),
            2,
            "STORE: only the hybrid store",
        ),
        ({}, ("migrate", "up"), 2, "DATABASE_URL: is required by migrate"),
        (
            {"DATABASE_URL": "postgresql://a:geheim@127.0.0.1:9/x"},
            ("migrate", "up"),
            1,
            "chat-memory: ",
        ),
    ],
)
async def test_a_wrong_start_ends_in_one_line(tmp_path, environment, words, status, said):
    async with service(*words, environment=environment, folder=tmp_path) as running:
        assert await running.ended() == status
        log = running.log.read_text("utf-8")
        assert said in log
        assert "Traceback" not in log
        assert "geheim" not in log


async def test_migrate_reports_and_verifies(tmp_path, empty_database_url):
    environment = {"STORE": "postgres", "DATABASE_URL": empty_database_url}
    said = []
    for direction, status in (("verify", 1), ("up", 0), ("up", 0), ("status", 0), ("verify", 0)):
        async with service("migrate", direction, environment=environment, folder=tmp_path) as run:
            assert await run.ended() == status, run.log.read_text("utf-8")
            said.append(run.log.read_text("utf-8"))
    assert "pending" in said[0]
    assert "0001_sessions_and_messages" in said[1]
    assert "nothing to do" in said[2]
    assert said[3].count("applied") == len(list((ROOT / "migrations").glob("*.sql")))


async def test_a_server_is_not_ready_while_its_schema_is_behind(
    tmp_path, empty_database_url, redis_url
):
    environment = {"DATABASE_URL": empty_database_url, "REDIS_URL": redis_url}
    async with (
        service("serve", environment=environment, folder=tmp_path) as running,
        httpx.AsyncClient() as http,
    ):

        async def says_why() -> bool:
            try:
                response = await http.get(f"{running.ops_url}/health/ready")
            except httpx.TransportError:
                return False
            schema = response.json()["dependencies"][2]
            return response.status_code == 503 and schema["name"] == "schema" and not schema["ok"]

        await eventually(says_why, within_seconds=30)
        async with service("migrate", "up", environment=environment, folder=tmp_path) as migration:
            assert await migration.ended() == 0
        await running.until_ready(10)


async def test_sigterm_finishes_what_is_in_flight_and_flushes(tmp_path, database_url, redis_url):
    released = asyncio.Event()
    async with ModelServer() as model:
        model.script(Reply(text="in flight", until=released))
        environment = {
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
            "OPENAI_API_KEY": "k",
            "OPENAI_BASE_URL": model.base_url,
            "FLUSH_LINGER_MILLISECONDS": "10000",
        }
        async with service(
            "serve", "--with-flusher", environment=environment, folder=tmp_path
        ) as running:
            await running.until_ready()
            chat = asyncio.create_task(say(running, "hello"))
            await eventually(lambda: model.requests, within_seconds=10)
            running.send(signal.SIGTERM)
            async with httpx.AsyncClient() as http:

                async def refuses() -> bool:
                    try:
                        response = await http.get(f"{running.ops_url}/health/ready")
                    except httpx.TransportError:
                        return True
                    return response.status_code == 503

                await eventually(refuses, within_seconds=5)
            released.set()
            assert (await chat)["response"] == "in flight"
            assert await running.ended() == 0

    connection = await asyncpg.connect(database_url)
    assert await connection.fetchval("SELECT count(*) FROM messages") == 2
    await connection.close()


async def test_a_turn_that_outlives_the_grace_time_is_told_so_and_frees_its_session(
    tmp_path, database_url, redis_url
):
    never = asyncio.Event()
    async with ModelServer() as model:
        model.script(Reply(text="late", until=never))
        environment = {
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
            "OPENAI_API_KEY": "k",
            "OPENAI_BASE_URL": model.base_url,
            "SHUTDOWN_GRACE_SECONDS": "3",
        }
        async with (
            service("serve", environment=environment, folder=tmp_path) as running,
            httpx.AsyncClient(timeout=20) as http,
        ):
            await running.until_ready()
            body = {"user_id": "ada", "message": "the planted text"}
            chat = asyncio.create_task(http.post(f"{running.url}/chat", json=body))
            await eventually(lambda: model.requests, within_seconds=10)
            started = time.monotonic()
            running.send(signal.SIGTERM)
            response = await chat
            assert (response.status_code, response.json()["code"]) == (503, "draining")
            assert response.headers["x-should-retry"] == "true"
            assert await running.ended() == 0
            assert time.monotonic() - started < 3.5
            assert "planted" not in running.log.read_text("utf-8")
        never.set()

        async with service("serve", environment=environment, folder=tmp_path) as running:
            await running.until_ready()
            answered = await say(running, "again")
            assert answered["context"]["messages"] == 1
