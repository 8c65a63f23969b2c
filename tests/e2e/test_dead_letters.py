"""Poison that gets through the front door, and what operators do about it, over real processes.

A database that was made with another encoding than UTF-8 takes most texts and refuses some.
"""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from tests.support.api import problem
from tests.support.polling import eventually
from tests.support.processes import Running, service
from tests.support.servers import PostgresServer

ROOT = Path(__file__).parents[2]
POISON = "привет"
MESSAGES = "/v1/sessions/s/messages"


async def ops(environment: dict[str, str], *words: str) -> tuple[int, list[Any], str]:
    """`python -m service ops dead-letters`: its status, lines and log."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "service", "ops", "dead-letters", *words),
        cwd=ROOT,
        env={"PATH": os.environ["PATH"]} | environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, log = await asyncio.wait_for(process.communicate(), 40)
    lines = [json.loads(line) for line in output.splitlines()]
    return process.returncode or 0, lines, log.decode()


async def contents(http: httpx.AsyncClient, running: Running) -> list[str]:
    items = (await http.get(running.url + MESSAGES)).json()["items"]
    return [item["content"] for item in items]


async def say(http: httpx.AsyncClient, running: Running, *texts: str, **more: Any):
    messages = [{"role": "user", "content": text} for text in texts]
    return await http.post(running.url + MESSAGES, json={"messages": messages} | more)


async def metric(http: httpx.AsyncClient, running: Running, name: str) -> float:
    lines = (await http.get(f"{running.ops_url}/metrics")).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


@pytest.mark.timeout(120)
async def test_poison_that_gets_through_the_front_door(
    tmp_path: Path, postgres: PostgresServer, redis_url: str
):
    async with postgres.database(migrated=True, encoding="LATIN1") as database_url:
        environment = {"DATABASE_URL": database_url, "REDIS_URL": redis_url}
        async with (
            service("serve", "--with-flusher", environment=environment, folder=tmp_path) as running,
            httpx.AsyncClient(timeout=20) as http,
        ):
            await running.until_ready()
            letter_id = await _becomes_a_letter(http, running)
            await _is_handled_over_http(http, running, letter_id)
            await _is_handled_on_the_command_line(http, running, environment, letter_id)
            await _is_retried(http, running, database_url)
            log = running.log.read_text("utf-8")
    assert POISON not in log
    events = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    [letter, *_] = [event for event in events if event["event"] == "dead_letter"]
    assert (letter["level"], letter["reason"]) == ("error", "22P05")
    handled = [event for event in events if event["event"] == "dead_letter_handled"]
    assert [(event["outcome"], event["by"]) for event in handled] == [
        ("refused", "http 127.0.0.1"),
        ("archived", "http 127.0.0.1"),
        ("dropped", "http 127.0.0.1"),
    ]
    assert {event["level"] for event in handled} == {"warning"}


async def _becomes_a_letter(http: httpx.AsyncClient, running: Running) -> str:
    refused = await say(http, running, "hello", POISON, "bye", durability="archived")
    body = problem(refused, 503, "archive_unavailable")
    assert (body["retryable"], refused.headers["x-should-retry"]) == (False, "false")
    assert "dead letter" in body["detail"]
    assert (await say(http, running, "more", durability="archived")).status_code == 201
    assert await contents(http, running) == ["hello", POISON, "bye", "more"]

    listed = await http.get(f"{running.ops_url}/ops/dead-letters")
    [letter] = listed.json()["items"]
    assert (letter["reason"], letter["attempts"], letter["kind"]) == ("22P05", 1, "message")
    assert POISON not in listed.text
    assert json.dumps(POISON) not in listed.text
    shown = await http.get(f"{running.ops_url}/ops/dead-letters/{letter['id']}")
    assert shown.json() == letter

    async def measured() -> bool:
        return await metric(http, running, "chat_memory_dead_letters{") == 1

    await eventually(measured, within_seconds=10)
    name = 'chat_memory_dead_lettered_entries_total{reason="22P05"}'
    assert await metric(http, running, name) == 1
    journal = (await http.get(f"{running.ops_url}/ops/journal")).json()
    assert (journal["entries"], journal["dead_letters"]) == (0, 1)
    return letter["id"]


async def _is_handled_over_http(http: httpx.AsyncClient, running: Running, letter_id: str):
    letters = f"{running.ops_url}/ops/dead-letters"
    retried = await http.post(f"{letters}/{letter_id}/retry")
    assert retried.json() == {"id": letter_id, "outcome": "refused", "reason": "22P05"}
    assert (await http.get(f"{letters}/{letter_id}")).json()["attempts"] == 2
    unknown = letter_id[:-4] + "0000"
    problem(await http.post(f"{letters}/{unknown}/retry"), 404, "not_found")
    problem(await http.delete(f"{letters}/{unknown}"), 404, "not_found")
    problem(await http.delete(f"{letters}/x"), 422, "invalid_value", "letter_id")
    problem(await http.get(letters, params={"limit": 0}), 422, "invalid_value", "limit")
    problem(await http.get(letters, params={"cursor": "x"}), 422, "invalid_value", "cursor")
    problem(await http.get(letters, params={"shard": 1}), 400, "invalid_request", "shard")


async def _is_handled_on_the_command_line(
    http: httpx.AsyncClient, running: Running, environment: dict[str, str], letter_id: str
):
    status, [letter], _ = await ops(environment, "list")
    assert (status, letter["id"], letter["attempts"]) == (0, letter_id, 2)
    status, [shown], _ = await ops(environment, "show", letter_id)
    assert (status, shown) == (0, letter)
    status, [outcome], log = await ops(environment, "retry", "--all")
    assert (status, outcome["outcome"], outcome["reason"]) == (1, "refused", "22P05")
    assert "1 of 1 letters were refused again" in log
    status, [outcome], log = await ops(environment, "drop", letter_id)
    assert (status, outcome["outcome"]) == (0, "dropped")
    audited = json.loads(log.splitlines()[-1])
    assert audited["event"] == "dead_letter_handled"
    assert (audited["outcome"], audited["by"]) == ("dropped", f"cli {os.getuid()}")
    status, lines, log = await ops(environment, "drop", letter_id)
    assert (status, lines) == (1, [])
    assert "no dead letter" in log
    assert (await ops(environment, "list"))[:2] == (0, [])
    assert await contents(http, running) == ["hello", "bye", "more"]


async def _is_retried(http: httpx.AsyncClient, running: Running, database_url: str):
    """Here what refuses can be mended."""
    connection = await asyncpg.connect(database_url)
    rule = "CHECK (body->>'content' NOT LIKE 'no%') NOT VALID"
    await connection.execute(f"ALTER TABLE messages ADD CONSTRAINT picky {rule}")
    assert (await say(http, running, "no 1", "no 2", "yes")).status_code == 201
    letters = f"{running.ops_url}/ops/dead-letters"

    async def two() -> Any:
        page = (await http.get(letters, params={"limit": 1})).json()
        if not page["items"]:
            return None
        cursor = page["next_cursor"]
        rest = (await http.get(letters, params={"cursor": cursor, "limit": 1})).json()
        return [*page["items"], *rest["items"]] if rest["items"] else None

    first, second = await eventually(two, within_seconds=10)
    await connection.execute("ALTER TABLE messages DROP CONSTRAINT picky")
    retried = await http.post(f"{letters}/{first['id']}/retry")
    assert retried.json() == {"id": first["id"], "outcome": "archived", "reason": None}
    assert (await http.delete(f"{letters}/{second['id']}")).status_code == 204
    assert (await http.get(letters)).json() == {"items": [], "next_cursor": None}
    assert await contents(http, running) == ["hello", "bye", "more", "no 1", "yes"]
    archived = await connection.fetch("SELECT body->>'content' AS text FROM messages ORDER BY id")
    assert [row["text"] for row in archived] == ["hello", "bye", "more", "no 1", "yes"]
    await connection.close()
