"""DELETE /v1/users/{user_id} and its export, over HTTP."""

import asyncio
import json
from typing import Any

import pytest

from service.adapters.openai.model import NoModel
from service.api.middleware import STREAM, Deadline
from tests.support.api import api_client


@pytest.fixture
async def api():
    async with api_client(NoModel("none")) as client:
        yield client


def problem(response, status, code):
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert response.headers["content-type"] == "application/problem+json"


async def append(api, session, *contents, user="ada"):
    messages = [{"role": "user", "content": content} for content in contents]
    body = {"messages": messages, "user_id": user}
    response = await api.http.post(f"/v1/sessions/{session}/messages", json=body)
    assert response.status_code == 201


def lines(response):
    assert response.headers["content-type"].startswith("application/x-ndjson")
    assert response.text.endswith("\n")
    return [json.loads(line) for line in response.text.splitlines()]


async def test_an_erased_user_is_unknown(api):
    await append(api, "s", "a", user="a/b ü")
    response = await api.http.delete("/v1/users/a%2Fb%20%C3%BC")
    assert response.status_code == 200
    assert response.json()["erased"] == {
        "hot_sessions": 1,
        "journal_entries": 0,
        "archive_sessions": 0,
        "archive_messages": 0,
        "profiles": 0,
        "idempotency_records": 0,
        "dead_letters": 0,
    }
    assert response.json()["completed_at"].endswith("Z")
    problem(await api.http.delete("/v1/users/a%2Fb%20%C3%BC"), 404, "not_found")
    problem(await api.http.get("/v1/sessions/s"), 404, "not_found")


@pytest.mark.parametrize("path", ["/v1/users/{}", "/v1/users/{}/export"])
async def test_bad_users_and_parameters_are_refused(api, path):
    call = api.http.get if path.endswith("export") else api.http.delete
    problem(await call(path.format("a" * 256)), 422, "invalid_value")
    problem(await call(path.format("%ff")), 422, "invalid_value")
    problem(await call(path.format("ada") + "?user_id=eve"), 400, "invalid_request")
    problem(await call(path.format("nobody")), 404, "not_found")


async def test_an_export_has_all_sessions_and_messages_in_order(api):
    await append(api, "a", *(f"a{n}" for n in range(130)))
    await append(api, "b", "b0")
    await append(api, "c", "c0", user="eve")
    await api.http.post("/v1/sessions", json={"id": "empty", "user_id": "ada"})

    response = await api.http.get("/v1/users/ada/export")
    assert response.headers["content-disposition"] == 'attachment; filename="export.ndjson"'
    first, *middle, last = lines(response)
    assert (first["type"], first["user_id"]) == ("user", "ada")
    assert last == {"type": "end", "sessions": 3, "messages": 131}
    sessions = [line for line in middle if line["type"] == "session"]
    assert [line["id"] for line in sessions] == ["a", "b", "empty"]
    messages = [line for line in middle if line["type"] == "message"]
    assert [line["content"] for line in messages] == [*(f"a{n}" for n in range(130)), "b0"]
    shown = (await api.http.get("/v1/sessions/b/messages")).json()["items"]
    assert messages[-1] == {"type": "message", **shown[0]}
    assert sessions[1] == {"type": "session", **(await api.http.get("/v1/sessions/b")).json()}


class StreamingHandler:
    opt = STREAM


async def run(deadline: Any, send: Any) -> None:
    await deadline({"route_handler": StreamingHandler}, None, send)


async def test_a_stream_may_take_longer_than_a_request():
    async def stream(scope: Any, receive: Any, send: Any) -> None:
        for number in range(5):
            await asyncio.sleep(0.01)
            await send(number)

    async def keep(message: Any) -> None:
        sent.append(message)

    sent: list[Any] = []
    deadline = Deadline(stream, seconds=0.02, import_seconds=1, unread_seconds=1)
    await run(deadline, keep)
    assert sent == [0, 1, 2, 3, 4]


async def test_a_stream_that_nobody_reads_ends():
    sent: list[Any] = []

    async def stream(scope: Any, receive: Any, send: Any) -> None:
        for number in range(3):
            await send({"type": "http.response.body", "body": b"%d" % number})

    async def stuck(message: Any) -> None:
        sent.append(message)
        if len(sent) == 2:
            await asyncio.Event().wait()

    deadline = Deadline(stream, seconds=0.01, import_seconds=1, unread_seconds=0.05)
    with pytest.raises(TimeoutError):
        await run(deadline, stuck)
    assert len(sent) == 2
