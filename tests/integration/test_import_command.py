"""The command that imports a file of many sessions, as a process."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest

from service.ports import Append, PageQuery
from service.settings import Settings
from tests.support.stores import kept, recall_of, ref, said

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["postgres", "hybrid"])
def settings(request: pytest.FixtureRequest) -> Settings:
    hybrid = request.param == "hybrid"
    return Settings(
        store=request.param,
        database_url=request.getfixturevalue("database_url"),
        redis_url=request.getfixturevalue("redis_url") if hybrid else None,
    )


def line(content: str, **fields: Any) -> bytes:
    return msgspec.json.encode({"role": "user", "content": content} | fields) + b"\n"


def session(name: str, *contents: str, **fields: Any) -> bytes:
    return b"".join(line(content, session_id=name, **fields) for content in contents)


async def ran(settings: Settings, body: bytes, *words: str, file: str = "-") -> tuple[int, str]:
    """The exit status and what was said on the standard error."""
    environment = {
        "PATH": os.environ["PATH"],
        "STORE": settings.store,
        "DATABASE_URL": settings.database_url or "",
        "REDIS_URL": settings.redis_url or "",
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "service", "import", file, *words),
        cwd=ROOT,
        env=environment,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, told = await asyncio.wait_for(process.communicate(body), 40)
    assert output == b""
    return process.returncode or 0, told.decode()


async def contents(settings: Settings, name: str) -> list[Any]:
    async with kept(settings) as store:
        page = await store.store.transcripts.page(ref(name), PageQuery(limit=1000))
    return [message.content for message in page]


async def test_a_file_of_many_sessions_is_imported(settings, tmp_path):
    path = tmp_path / "all.jsonl"
    path.write_bytes(
        session("a", "1", "2", user_id="ada") + session("b", "3") + session("c", "4", "5")
    )
    status, told = await ran(settings, b"", file=str(path))
    assert status == 0, told
    assert "5 messages, 3 sessions" in told
    assert await contents(settings, "a") == ["1", "2"]
    assert await contents(settings, "c") == ["4", "5"]
    async with kept(settings) as store:
        found = await recall_of(store.store).session(ref("a"))
    assert (found.user_id, found.message_count) == ("ada", 2)


async def test_an_export_is_imported_and_what_is_no_message_is_passed_over(settings):
    body = (
        b'{"type":"user","user_id":"ada"}\n{"type":"profile","topics":{}}\n'
        b'{"type":"session","id":"a","user_id":"ada","metadata":{"x":1}}\n'
        + line("1", type="message", id="m", session_id="a", token_count=1, turn_id="t")
        + b'{"type":"session","id":"b","user_id":"ada"}\n'
        + line("2", type="message", created_at="2020-01-01T00:00:00Z")
        + b'{"type":"end","messages":2}\n'
    )
    status, told = await ran(settings, body)
    assert status == 0, told
    assert (await contents(settings, "a"), await contents(settings, "b")) == (["1"], ["2"])


async def test_a_bad_line_ends_it_with_the_sessions_before_it(settings):
    body = session("a", "1") + session("b", "2", "") + session("c", "3")
    status, told = await ran(settings, body)
    assert status == 1
    assert "session 'b'" in told
    assert "line 3.content: must not be empty" in told
    assert "1 messages, 1 sessions" in told
    assert await stored(settings) == 1


async def test_sessions_that_are_not_empty_are_refused_or_skipped(settings):
    async with kept(settings) as store:
        await store.store.transcripts.append(Append(ref=ref("b"), bodies=(said("here"),)))
    body = session("a", "1") + session("b", "2", "3") + session("c", "4")
    status, told = await ran(settings, body)
    assert status == 1
    assert "line 2, session 'b'" in told

    status, told = await ran(settings, body, "--skip-existing")
    assert status == 0, told
    assert "1 messages, 1 sessions, 2 sessions skipped" in told
    assert await contents(settings, "b") == ["here"]
    assert await contents(settings, "c") == ["4"]


async def test_words_that_are_wrong_are_told(settings):
    status, told = await ran(settings, b"", file="/nowhere/at/all")
    assert (status, told) == (2, "chat-memory: FILE: cannot be read (FileNotFoundError)\n")
    status, told = await ran(settings, line("1"))
    assert status == 1
    assert "line 1.session_id: is required" in told


async def stored(settings: Settings) -> int:
    connection = await asyncpg.connect(settings.database_url)
    try:
        return await connection.fetchval("SELECT count(*) FROM messages")
    finally:
        await connection.close()
