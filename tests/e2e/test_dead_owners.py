"""Processes that die in the middle of a turn, for real, and what others make of it."""

import asyncio
import signal
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import httpx
import msgspec
import pytest

from tests.support.model_server import ModelServer, Reply, data
from tests.support.polling import eventually
from tests.support.processes import Running, service

LEASE_SECONDS = 2.0
QUESTION = "the planted question"
CHAT = "/v1/sessions/s/chat"


async def events(
    http: httpx.AsyncClient, method: str, url: str, **request: Any
) -> AsyncGenerator[tuple[str, dict[str, Any]]]:
    async with http.stream(method, url, **request) as response:
        assert response.status_code == 200, await response.aread()
        name = ""
        async for line in response.aiter_lines():
            field, _, value = line.partition(": ")
            if field == "event":
                name = value
            elif field == "data":
                yield name, msgspec.json.decode(value)


async def state(http: httpx.AsyncClient, at: Running, turn_id: str) -> str:
    response = await http.get(f"{at.url}/v1/sessions/s/turns/{turn_id}")
    assert response.status_code == 200, response.text
    return response.json()["state"]


@pytest.mark.parametrize("store", ["postgres", "redis", "hybrid"])
async def test_a_turn_whose_owner_is_killed_is_interrupted_and_the_session_goes_on(
    tmp_path, database_url, redis_url, store
):
    never = asyncio.Event()
    piece = data({"choices": [{"delta": {"content": "half of it "}}]})
    async with ModelServer() as model:
        model.script(Reply(steps=[piece, 0.3, piece, never]))
        environment = {
            "STORE": store,
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
            "OPENAI_API_KEY": "k",
            "OPENAI_BASE_URL": model.base_url,
            "TURN_LEASE_SECONDS": str(LEASE_SECONDS),
        }
        running = [
            service("serve", environment=environment, folder=tmp_path / name)
            for name in ("owner", "other")
        ]
        for name in ("owner", "other"):
            (tmp_path / name).mkdir()
        async with running[0] as owner, running[1] as other, httpx.AsyncClient(timeout=20) as http:
            await asyncio.gather(owner.until_ready(), other.until_ready())
            following, turn_id = await _killed_while_it_told(http, owner, other)
            killed = time.monotonic()

            # Within the lease the session is taken; after it the turn is over, for good.
            busy = await http.post(other.url + CHAT, json={"message": "now?"})
            assert (busy.status_code, busy.json()["code"]) == (409, "session_busy")
            names = await following
            assert names[-1] == ("turn.failed", "interrupted")
            assert time.monotonic() - killed < LEASE_SECONDS + 2
            assert await state(http, other, turn_id) == "interrupted"

            # The same key runs it again, without a second message; nothing half was kept.
            model.script(Reply(text="the whole of it"))
            again = await http.post(
                other.url + CHAT,
                json={"message": QUESTION, "user_id": "u"},
                headers={"Idempotency-Key": "k"},
            )
            assert again.json()["response"] == "the whole of it", again.text
            assert again.json()["turn_id"] == turn_id
            messages = (await http.get(f"{other.url}/v1/sessions/s/messages")).json()["items"]
            assert [message["content"] for message in messages] == [QUESTION, "the whole of it"]
            # Whoever paid for the tokens of a dead process does not go on paying.
            await eventually(lambda: len(model.hung_up) == 1, within_seconds=5)
        never.set()


async def _killed_while_it_told(
    http: httpx.AsyncClient, owner: Running, other: Running
) -> tuple["asyncio.Task[list[tuple[str, str]]]", str]:
    """Kills the owner of a streamed turn that is followed at another process."""
    asked = {"message": QUESTION, "user_id": "u", "stream": True}
    headers = {"Idempotency-Key": "k"}
    telling = events(http, "POST", owner.url + CHAT, json=asked, headers=headers)
    async with aclosing(telling):
        _, started = await anext(telling)
        turn_id = started["turn_id"]
        assert (await anext(telling))[0] == "delta"

        async def followed() -> list[tuple[str, str]]:
            url = f"{other.url}/v1/sessions/s/turns/{turn_id}/events"
            joined = events(http, "GET", url)
            return [(name, body.get("state", "")) async for name, body in joined]

        following = asyncio.create_task(followed())
        assert (await anext(telling))[0] == "delta"
        assert await state(http, other, turn_id) == "running"
        owner.send(signal.SIGKILL)
        await owner.ended()
        with pytest.raises(httpx.RemoteProtocolError):
            await anext(telling)
    return following, turn_id
