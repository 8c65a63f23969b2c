"""The HTTP surface: shapes, refusals and their words. Stores are tested elsewhere."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from service.domain.errors import (
    ContextTooLarge,
    ModelError,
    ModelTimeout,
    ModelUnavailable,
)
from service.domain.ids import id_milliseconds
from service.domain.observations import RequestServed
from service.settings import Settings
from tests.support.api import BODY_BYTES_MAX, Client, api_client, problem
from tests.support.polling import eventually
from tests.support.scripted_model import ScriptedModel, answer_of

JSON = {"content-type": "application/json"}


@pytest.fixture
def model() -> ScriptedModel:
    return ScriptedModel()


@pytest.fixture
async def api(model: ScriptedModel) -> AsyncGenerator[Client]:
    async with api_client(model) as client:
        yield client


async def said(api: Client, text: str = "hi", **fields: Any):
    return await api.http.post("/chat", json={"user_id": "ada", "message": text} | fields)


async def append(api: Client, session: str, *texts: str):
    messages = [{"role": "user", "content": text} for text in texts]
    return await api.http.post(f"/v1/sessions/{session}/messages", json={"messages": messages})


# --- the two lines --------------------------------------------------------------------------------


async def test_a_conversation_is_remembered(api, model):
    first = (await said(api, "my name is Ada")).json()
    second = (await said(api, "what is my name?")).json()

    assert first["response"] == "echo: my name is Ada"
    assert [m["content"] for m in model.prompts[1].messages] == [
        "my name is Ada",
        "echo: my name is Ada",
        "what is my name?",
    ]
    assert (second["state"], second["session_id"]) == ("completed", "ada")
    assert second["context"] == {"strategy": "window", "messages": 2, "tokens": 30}
    assert second["usage"]["total_tokens"] == 7
    history = (await api.http.get("/history/ada")).json()
    assert [m["role"] for m in history["messages"]] == ["user", "assistant"] * 2
    assert set(history["messages"][0]) == {"id", "role", "content", "created_at"}
    assert (history["user_id"], history["next_cursor"]) == ("ada", None)
    assert history["messages"][3]["id"] == second["message"]["id"]
    assert history["messages"][2]["id"] == second["user_message_id"]


async def test_the_turn_carries_the_callers_choices(api, model):
    await said(
        api,
        model="other",
        instructions="be brief",
        temperature=0.5,
        max_output_tokens=9,
        context={"strategy": "window", "last": 1},
    )
    [prompt] = model.prompts
    assert (prompt.model, prompt.temperature, prompt.max_output_tokens) == ("other", 0.5, 9)
    assert prompt.messages[0] == {"role": "system", "content": "be brief"}


async def test_a_session_id_separates_conversations_of_one_user(api):
    await said(api, session_id="work")
    assert len((await api.http.get("/history/work")).json()["messages"]) == 2
    assert (await api.http.get("/history/ada")).json()["messages"] == []


async def test_history_shows_the_newest_and_says_where_older_ones_are(api):
    await append(api, "s", *"abcde")
    page = (await api.http.get("/history/s?limit=2")).json()
    assert [m["content"] for m in page["messages"]] == ["d", "e"]
    older = await api.http.get(f"/v1/sessions/s/messages?order=desc&before={page['next_cursor']}")
    assert [m["content"] for m in older.json()["items"]] == ["c", "b", "a"]


async def test_clearing_is_204_also_for_an_unknown_id(api):
    await said(api)
    for _ in range(2):
        response = await api.http.delete("/history/ada")
        assert (response.status_code, response.content) == (204, b"")
    assert (await api.http.get("/history/ada")).json()["messages"] == []
    assert (await api.http.delete("/history/nobody")).status_code == 204


async def test_a_cut_answer_is_incomplete_and_kept_as_such(api, model):
    model.script = [answer_of("half", complete=False)]
    turn = (await said(api)).json()
    assert (turn["state"], turn["message"]["status"]) == ("incomplete", "incomplete")


# --- idempotency ----------------------------------------------------------------------------------


async def test_a_repeated_key_gets_the_same_answer_on_either_chat_route(api, model):
    key = {"Idempotency-Key": "k-1"}
    body = {"user_id": "ada", "message": "hi"}
    first = await api.http.post("/chat", json=body, headers=key)
    again = await api.http.post("/v1/sessions/ada/chat", json=body, headers=key)

    assert again.json() == first.json()
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert len(model.prompts) == 1
    other = await api.http.post("/chat", json=body | {"message": "ho"}, headers=key)
    problem(other, 422, "idempotency_key_reused")


async def test_a_failed_turn_keeps_the_message_and_the_key_runs_it_again(api, model):
    model.script = [ModelError("broken", retryable=True)]
    key = {"Idempotency-Key": "k"}
    body = {"user_id": "ada", "message": "hi"}
    failed = await api.http.post("/chat", json=body, headers=key)
    assert problem(failed, 502, "model_error")["retryable"] is True
    history = (await api.http.get("/history/ada")).json()
    assert [m["content"] for m in history["messages"]] == ["hi"]

    turn = (await api.http.post("/chat", json=body, headers=key)).json()
    assert turn["state"] == "completed"
    assert len(model.prompts[1].messages) == 1
    history = (await api.http.get("/history/ada")).json()
    assert [m["content"] for m in history["messages"]] == ["hi", "echo: hi"]


async def test_a_repeated_append_is_one(api):
    key = {"Idempotency-Key": "k"}
    body = {"messages": [{"role": "user", "content": "a"}]}
    first = await api.http.post("/v1/sessions/s/messages", json=body, headers=key)
    again = await api.http.post("/v1/sessions/s/messages", json=body, headers=key)

    assert first.status_code == again.status_code == 201
    assert first.json() == again.json()
    assert again.headers["idempotency-replayed"] == "true"
    body["messages"][0]["content"] = "b"
    response = await api.http.post("/v1/sessions/s/messages", json=body, headers=key)
    problem(response, 422, "idempotency_key_reused")


async def test_a_repeated_create_is_one_also_without_an_id(api):
    for body in ({}, {"id": "s", "metadata": {"a": 1}}):
        key = {"Idempotency-Key": f"k{len(body)}"}
        first = await api.http.post("/v1/sessions", json=body, headers=key)
        again = await api.http.post("/v1/sessions", json=body, headers=key)
        assert (first.status_code, again.status_code) == (201, 201)
        assert first.json() == again.json()
        assert again.headers["idempotency-replayed"] == "true"
        other = await api.http.post("/v1/sessions", json=body | {"user_id": "eve"}, headers=key)
        problem(other, 422, "idempotency_key_reused")
    assert len((await api.http.get("/v1/sessions")).json()["items"]) == 2


async def test_a_forgotten_key_makes_a_new_session(model):
    settings = Settings(store="memory", idempotency_ttl_seconds=0)
    async with api_client(model, settings) as api:
        key = {"Idempotency-Key": "k"}
        made = [(await api.http.post("/v1/sessions", json={}, headers=key)).json() for _ in "ab"]
        assert made[0]["id"] != made[1]["id"]


async def test_an_optimistic_append_is_told_where_the_session_stands(api):
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "a"}], "if_last_id": None}
    made = await api.http.post("/v1/sessions/s/messages", json=body)
    last_id = made.json()["messages"][0]["id"]
    refused = await api.http.post("/v1/sessions/s/messages", json=body)
    assert problem(refused, 412, "precondition_failed")["last_id"] == last_id
    body["if_last_id"] = last_id
    assert (await api.http.post("/v1/sessions/s/messages", json=body)).status_code == 201
    body["if_last_id"] = "x"
    refused = await api.http.post("/v1/sessions/s/messages", json=body)
    problem(refused, 422, "invalid_value", "if_last_id")


@pytest.mark.parametrize("key", ["", "a b", "é", "x" * 256])
async def test_a_key_out_of_range_is_refused(api, key):
    response = await api.http.post(
        "/chat",
        json={"user_id": "ada", "message": "hi"},
        headers={b"Idempotency-Key": key.encode()},
    )
    problem(response, 422, "invalid_value", "Idempotency-Key")


async def test_beside_a_running_turn_the_session_is_busy(api, model):
    model.gate = asyncio.Event()
    key = {"Idempotency-Key": "k"}
    body = {"user_id": "ada", "message": "hi"}
    running = asyncio.create_task(api.http.post("/chat", json=body, headers=key))
    await model.asked.wait()

    busy = await said(api, "ho")
    assert problem(busy, 409, "session_busy")["retryable"] is False
    assert (busy.headers["x-should-retry"], busy.headers["retry-after"]) == ("false", "10")
    same = asyncio.create_task(api.http.post("/chat", json=body, headers=key))
    await eventually(lambda: len(api.recorder.of(RequestServed)) >= 1, within_seconds=5)
    assert not same.done()
    model.gate.set()
    first, joined = await running, await same
    assert (first.status_code, joined.status_code) == (200, 200)
    assert first.json() == joined.json()
    replayed = "Idempotency-Replayed"
    assert (replayed in first.headers, joined.headers[replayed]) == (False, "true")
    assert len(model.prompts) == 1


async def test_who_joined_a_turn_that_fails_runs_it_again(api, model):
    model.gate = asyncio.Event()
    model.script = [ModelError("no"), answer_of("hi")]
    key, body = {"Idempotency-Key": "k"}, {"user_id": "ada", "message": "hi"}
    running = asyncio.create_task(api.http.post("/chat", json=body, headers=key))
    await model.asked.wait()
    same = asyncio.create_task(api.http.post("/chat", json=body, headers=key))
    model.gate.set()
    problem(await running, 502, "model_error")
    assert (await same).json()["response"] == "echo: hi"
    messages = (await api.http.get("/history/ada")).json()["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant"]


async def test_who_joins_a_turn_waits_no_longer_than_a_turn_may_take(model):
    model.gate = asyncio.Event()
    async with api_client(model, turn_deadline_seconds=0.2) as api:
        key, body = {"Idempotency-Key": "k"}, {"user_id": "ada", "message": "hi"}
        running = asyncio.create_task(api.http.post("/chat", json=body, headers=key))
        await model.asked.wait()
        same = await api.http.post("/chat", json=body, headers=key)
        problem(same, 409, "request_running")
        assert (same.headers["x-should-retry"], same.headers["retry-after"]) == ("true", "1")
        model.gate.set()
        assert (await running).status_code == 200


@pytest.mark.parametrize(
    ("error", "status", "code", "retry"),
    [
        (ModelError("no", retryable=False), 502, "model_error", "false"),
        (ModelUnavailable("away", retry_after_seconds=7), 503, "model_unavailable", "true"),
        (ModelTimeout("slow"), 504, "model_timeout", "true"),
        (ContextTooLarge("long"), 422, "context_too_large", "false"),
    ],
)
async def test_each_model_trouble_says_whether_a_retry_helps(
    api, model, error, status, code, retry
):
    model.script = [error]
    response = await said(api)
    problem(response, status, code)
    assert response.headers["x-should-retry"] == retry
    if status == 503:
        assert response.headers["retry-after"] == "7"


async def test_what_nobody_foresaw_is_500_without_its_words(api, model):
    model.script = [RuntimeError("the planted secret")]
    response = await said(api)
    problem(response, 500, "internal")
    assert "planted" not in response.text
    assert (await said(api)).status_code == 200


# --- sessions -------------------------------------------------------------------------------------


async def test_a_session_is_made_changed_listed_and_deleted(api):
    made = await api.http.post(
        "/v1/sessions",
        json={"id": "s", "user_id": "ada", "metadata": {"a": 1}, "ttl_seconds": 600},
    )
    assert made.status_code == 201
    problem(await api.http.post("/v1/sessions", json={"id": "s"}), 409, "session_exists")
    changed = await api.http.patch(
        "/v1/sessions/s",
        content=b'{"metadata": {"a": null, "b": 2}, "context": {"last": 3}}',
        headers={"content-type": "application/merge-patch+json"},
    )
    assert changed.json()["metadata"] == {"b": 2}
    assert changed.json()["context"] == {"last": 3}
    assert (await api.http.get("/v1/sessions/s")).json() == changed.json()
    listed = (await api.http.get("/v1/sessions?user_id=ada")).json()
    assert listed == {"items": [changed.json()], "next_cursor": None}
    assert (await api.http.get("/v1/sessions?user_id=eve")).json()["items"] == []
    assert (await api.http.delete("/v1/sessions/s")).status_code == 204
    problem(await api.http.get("/v1/sessions/s"), 404, "not_found")


async def test_an_id_is_made_where_none_is_given(api):
    made = (await api.http.post("/v1/sessions", json={})).json()
    assert (await api.http.get(f"/v1/sessions/{made['id']}")).json() == made


async def test_the_sessions_window_is_the_default_of_its_turns(api, model):
    await api.http.post("/v1/sessions", json={"id": "s", "context": {"last": 1}})
    await append(api, "s", "a", "b")
    await api.http.post("/v1/sessions/s/chat", json={"message": "c"})
    assert [m["content"] for m in model.prompts[0].messages] == ["b", "c"]
    shown = (await api.http.get("/v1/sessions/s/context?last=2")).json()
    assert [m["content"] for m in shown["messages"]] == ["c", "echo: c"]
    assert shown["left_out"] == {"count": 2, "reason": "window"}


async def test_another_users_session_is_not_found(api):
    await api.http.post("/v1/sessions", json={"id": "s", "user_id": "ada"})
    response = await api.http.post("/v1/sessions/s/chat", json={"message": "x", "user_id": "eve"})
    problem(response, 404, "not_found")


async def test_pages_lead_on_through_next_cursor(api):
    await append(api, "s", *"abcde")
    for order, cursor_of, wanted in (("asc", "after", "abcde"), ("desc", "before", "edcba")):
        found, cursor = "", None
        while True:
            params = {"limit": 2, "order": order} | ({cursor_of: cursor} if cursor else {})
            page = (await api.http.get("/v1/sessions/s/messages", params=params)).json()
            found += "".join(m["content"] for m in page["items"])
            cursor = page["next_cursor"]
            if cursor is None:
                break
        assert found == wanted


@pytest.mark.parametrize(
    "session_id",
    [
        "a/b",
        "a%b",
        "%2F",
        "a:b",
        "{cm:00}",
        "a b",
        "🦉",
        "..",
        ".",
        "messages",
        "?",
        "#",
        "x" * 255,
    ],
)
async def test_any_id_round_trips_through_a_path(api, session_id):
    segment = "".join(f"%{byte:02X}" for byte in session_id.encode())
    assert (await append(api, segment, "mine")).status_code == 201
    assert (await api.http.get(f"/v1/sessions/{segment}")).json()["id"] == session_id
    [message] = (await api.http.get(f"/v1/sessions/{segment}/messages")).json()["items"]
    assert (message["session_id"], message["content"]) == (session_id, "mine")


async def test_text_comes_back_byte_for_byte(api):
    text = "你好 世界 🦉 שלום\u2028\t\\u0041 \U0010ffff"
    await append(api, "s", text)
    response = await api.http.get("/history/s")
    assert response.json()["messages"][0]["content"] == text
    assert text.split("\t", maxsplit=1)[0].encode() in response.content


# --- bad input ------------------------------------------------------------------------------------

LONG = "x" * 256
BAD_CHATS = [
    ({"message": "hi"}, 400, "invalid_request", "user_id"),
    ({"user_id": "ada"}, 400, "invalid_request", "message"),
    ({"user_id": 5, "message": "hi"}, 400, "invalid_request", "user_id"),
    ({"user_id": "ada", "message": None}, 400, "invalid_request", "message"),
    ({"user_id": "ada", "message": "hi", "strem": True}, 400, "invalid_request", "strem"),
    ({"user_id": "ada", "message": "hi", "context": {"x": 1}}, 400, "invalid_request", "context.x"),
    (
        {"user_id": "ada", "message": "hi", "context": {"strategy": "all"}},
        400,
        "invalid_request",
        "context.strategy",
    ),
    (
        {"user_id": "ada", "message": "hi", "temperature": "1"},
        400,
        "invalid_request",
        "temperature",
    ),
    ({"user_id": "", "message": "hi"}, 422, "invalid_value", "user_id"),
    ({"user_id": LONG, "message": "hi"}, 422, "invalid_value", "user_id"),
    ({"user_id": "a\nb", "message": "hi"}, 422, "invalid_value", "user_id"),
    ({"user_id": "ada", "session_id": LONG, "message": "hi"}, 422, "invalid_value", "session_id"),
    ({"user_id": "ada", "session_id": "", "message": "hi"}, 422, "invalid_value", "session_id"),
    ({"user_id": "ada", "message": ""}, 422, "invalid_value", "message"),
    ({"user_id": "ada", "message": "a\x00b"}, 422, "invalid_value", "message"),
    ({"user_id": "ada", "message": "é" * 501}, 422, "invalid_value", "message"),
    ({"user_id": "ada", "message": "hi", "model": ""}, 422, "invalid_value", "model"),
    ({"user_id": "ada", "message": "hi", "instructions": ""}, 422, "invalid_value", "instructions"),
    ({"user_id": "ada", "message": "hi", "temperature": 2.1}, 422, "invalid_value", "temperature"),
    (
        {"user_id": "ada", "message": "hi", "max_output_tokens": 0},
        422,
        "invalid_value",
        "max_output_tokens",
    ),
    (
        {"user_id": "ada", "message": "hi", "context": {"last": 0}},
        422,
        "invalid_value",
        "context.last",
    ),
    (
        {"user_id": "ada", "message": "hi", "context": {"last": 1001}},
        422,
        "invalid_value",
        "context.last",
    ),
]


@pytest.mark.parametrize(("body", "status", "code", "field"), BAD_CHATS)
async def test_a_bad_chat_names_its_field_and_stores_nothing(api, body, status, code, field):
    response = await api.http.post("/chat", json=body)
    problem(response, status, code, field)
    assert (await api.http.get("/v1/sessions")).json()["items"] == []


BAD_MESSAGES = [
    ({"role": "robot", "content": "x"}, 400, "invalid_request", "messages[1].role"),
    ({"content": "x"}, 400, "invalid_request", "messages[1].role"),
    ({"role": "user", "content": 5}, 400, "invalid_request", "messages[1].content"),
    ({"role": "user", "content": "x", "id": "1"}, 400, "invalid_request", "messages[1].id"),
    ({"role": "user"}, 422, "invalid_value", "messages[1].content"),
    ({"role": "user", "content": ""}, 422, "invalid_value", "messages[1].content"),
    ({"role": "user", "content": "x" * 1001}, 422, "invalid_value", "messages[1].content"),
    ({"role": "user", "content": "\x00"}, 422, "invalid_value", "messages[1].content"),
    ({"role": "user", "content": [{"a": 1}]}, 422, "invalid_value", "messages[1].content[0].type"),
    ({"role": "tool", "content": "x"}, 422, "invalid_value", "messages[1].tool_call_id"),
    (
        {"role": "user", "content": "x", "metadata": {"a": "x" * 16384}},
        422,
        "invalid_value",
        "messages[1].metadata",
    ),
    ({"role": "user", "content": "x", "name": ""}, 422, "invalid_value", "messages[1].name"),
]


@pytest.mark.parametrize(("message", "status", "code", "field"), BAD_MESSAGES)
async def test_one_bad_message_refuses_the_whole_batch(api, message, status, code, field):
    body = {"messages": [{"role": "user", "content": "good"}, message]}
    response = await api.http.post("/v1/sessions/s/messages", json=body)
    problem(response, status, code, field)
    problem(await api.http.get("/v1/sessions/s"), 404, "not_found")


async def test_an_empty_batch_is_refused(api):
    response = await api.http.post("/v1/sessions/s/messages", json={"messages": []})
    assert "1 to 1000" in problem(response, 422, "invalid_value", "messages")["detail"]


async def test_a_batch_over_the_limit_is_refused(model):
    message = {"role": "user", "content": "x"}
    async with api_client(model, body_bytes_max=100_000) as api:
        for count, status in ((1000, 201), (1001, 422)):
            body = {"messages": [message] * count}
            response = await api.http.post("/v1/sessions/s/messages", json=body)
            assert response.status_code == status
        problem(response, 422, "invalid_value", "messages")
        assert (await api.http.get("/v1/sessions/s")).json()["message_count"] == 1000


@pytest.mark.parametrize(
    ("content", "field"),
    [
        (b"", "body"),
        (b"{", "body"),
        (b"nonsense", "body"),
        (b'"text"', "body"),
        (b"[]", "body"),
        (b'{"user_id": "ada", "message": "\\ud800"}', "body"),
        (b'{"user_id": "ada", "message": "\xff"}', "body"),
        (b'{"user_id": "ada", "message": "hi"} x', "body"),
    ],
)
async def test_what_is_no_json_object_is_400(api, content, field):
    response = await api.http.post("/chat", content=content, headers=JSON)
    problem(response, 400, "invalid_request", field)


async def test_a_request_that_takes_too_long_is_refused(model):
    async def endless():
        yield b'{"user_id": '
        await asyncio.Event().wait()

    async with api_client(model, request_seconds=0.2) as api:
        response = await api.http.post("/v1/sessions", content=endless(), headers=JSON)
        problem(response, 503, "overloaded")
        assert (await api.http.get("/v1/sessions")).json()["items"] == []


async def test_json_that_nests_too_deep_is_400(api):
    for deep in (b"[" * 9000 + b"]" * 9000, b'{"a":' * 3000 + b"1" + b"}" * 3000):
        response = await api.http.post(
            "/v1/sessions", content=b'{"metadata": {"a": ' + deep + b"}}", headers=JSON
        )
        # How deep msgspec decodes depends on Python's own limit; the rest is refused after it.
        if response.status_code == 400:
            problem(response, 400, "invalid_request", "body")
        else:
            problem(response, 422, "invalid_value", "metadata")


@pytest.mark.parametrize("depth", [65, 400, 900])
async def test_free_json_that_nests_too_deep_is_refused_by_field(api, depth):
    deep: Any = "x"
    for _ in range(depth):
        deep = {"a": deep}
    await append(api, "s", "x")
    made = await api.http.post("/v1/sessions", json={"metadata": deep})
    problem(made, 422, "invalid_value", "metadata")
    changed = await api.http.patch("/v1/sessions/s", json={"metadata": deep})
    problem(changed, 422, "invalid_value", "metadata")
    changed = await api.http.patch("/v1/sessions/s", json={"context": deep})
    problem(changed, 400, "invalid_request", "context.a")
    for field in ("metadata", "tool_calls", "content"):
        value = deep if field == "metadata" else [{"type": "text", "deep": deep}]
        message = {"role": "user", "content": "x"} | {field: value}
        body = {"messages": [message]}
        response = await api.http.post("/v1/sessions/s/messages", json=body)
        problem(response, 422, "invalid_value", f"messages[0].{field}")


@pytest.mark.parametrize(
    "media_type", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
)
async def test_other_media_types_are_refused(api, media_type):
    headers = {"content-type": media_type} if media_type else {}
    response = await api.http.post("/chat", content=b'{"user_id":"a"}', headers=headers)
    problem(response, 415, "unsupported_media_type")


async def test_a_charset_beside_the_media_type_is_fine(api):
    response = await api.http.post(
        "/chat",
        content=b'{"user_id": "ada", "message": "hi"}',
        headers={"content-type": "Application/JSON; charset=utf-8"},
    )
    assert response.status_code == 200


async def test_a_body_over_the_limit_is_refused(api):
    response = await api.http.post("/chat", content=b"x" * (BODY_BYTES_MAX + 1), headers=JSON)
    found = problem(response, 413, "too_large", "body")
    assert str(BODY_BYTES_MAX) in found["detail"]


@pytest.mark.parametrize(
    ("path", "status", "code", "field"),
    [
        ("/history/ada?limit=0", 422, "invalid_value", "limit"),
        ("/history/ada?limit=1001", 422, "invalid_value", "limit"),
        ("/history/ada?limit=-1", 422, "invalid_value", "limit"),
        ("/history/ada?limit=ten", 400, "invalid_request", "limit"),
        ("/history/ada?limt=3", 400, "invalid_request", "limt"),
        ("/history/ada?session_id=x", 400, "invalid_request", "session_id"),
        (f"/history/{LONG}", 422, "invalid_value", "session_id"),
        ("/history/%00", 422, "invalid_value", "session_id"),
        ("/history/%ff", 422, "invalid_value", "session_id"),
        ("/history/%zz", 422, "invalid_value", "session_id"),
        ("/v1/sessions?limit=0", 422, "invalid_value", "limit"),
        ("/v1/sessions?cursor=x", 422, "invalid_value", "cursor"),
        ("/v1/sessions?user_id=", 422, "invalid_value", "user_id"),
        ("/v1/sessions/s/messages?before=x", 422, "invalid_value", "before"),
        ("/v1/sessions/s/messages?after=", 422, "invalid_value", "after"),
        ("/v1/sessions/s/messages?role=robot", 400, "invalid_request", "role"),
        ("/v1/sessions/s/messages?from=yesterday", 400, "invalid_request", "from"),
        (
            "/v1/sessions/s/messages?from_time=2026-01-01T00:00:00Z",
            400,
            "invalid_request",
            "from_time",
        ),
        ("/v1/sessions/s/messages?from=2026-01-01T00:00:00", 422, "invalid_value", "from"),
        (
            "/v1/sessions/s/messages?from=2026-01-02T00:00:00Z&to=2026-01-01T00:00:00Z",
            422,
            "invalid_value",
            "to",
        ),
        ("/v1/sessions/s/messages?to=0001-01-01T00:00:00Z", 422, "invalid_value", "to"),
        ("/v1/sessions/s/messages?consistency=x", 400, "invalid_request", "consistency"),
        ("/history/s?consistency=archive", 422, "invalid_value", "consistency"),
        ("/v1/sessions/s?wait=x", 400, "invalid_request", "wait"),
        (
            "/v1/sessions/s?wait=archived&timeout_seconds=16",
            422,
            "invalid_value",
            "timeout_seconds",
        ),
        (
            "/v1/sessions/s?wait=archived&timeout_seconds=nan",
            422,
            "invalid_value",
            "timeout_seconds",
        ),
        ("/v1/sessions/s/messages?order=up", 400, "invalid_request", "order"),
        ("/v1/sessions/s/context?strategy=x", 400, "invalid_request", "strategy"),
        ("/v1/sessions/s/context?last=0", 422, "invalid_value", "last"),
    ],
)
async def test_a_bad_query_or_path_names_its_field(api, path, status, code, field):
    problem(await api.http.get(path), status, code, field)


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"id": LONG}, 422, "id"),
        ({"user_id": ""}, 422, "user_id"),
        ({"ttl_seconds": 5}, 422, "ttl_seconds"),
        ({"ttl_seconds": "600"}, 400, "ttl_seconds"),
        ({"metadata": []}, 400, "metadata"),
        ({"metadata": {"a": "x" * 16384}}, 422, "metadata"),
        ({"metadata": {"a": "\x00"}}, 422, "metadata"),
        ({"context": {"last": 0}}, 422, "context.last"),
        ({"context": {"max_tokns": 1}}, 400, "context.max_tokns"),
        ({"context": {"last": "3"}}, 400, "context.last"),
    ],
)
async def test_a_session_that_cannot_be_is_refused(api, body, status, field):
    code = "invalid_value" if status == 422 else "invalid_request"
    problem(await api.http.post("/v1/sessions", json=body), status, code, field)
    if "id" not in body and "user_id" not in body:
        await append(api, "s", "x")
        problem(await api.http.patch("/v1/sessions/s", json=body), status, code, field)


@pytest.mark.parametrize(
    ("query", "status", "field"),
    [
        ("q=", 422, "q"),
        ("q=%21%3F%E3%80%82", 422, "q"),
        ("q=" + "a" * 501, 422, "q"),
        ("q=" + "+".join("abcdefghijklmnopq"), 422, "q"),
        ("limit=0", 422, "limit"),
        ("limit=1001", 422, "limit"),
        ("cursor=x", 422, "cursor"),
        ("cursor=s%3A1", 422, "cursor"),
        ("role=robot", 400, "role"),
        ("user_id=", 422, "user_id"),
        ("session_id=" + "x" * 256, 422, "session_id"),
        ("from=2026-01-02T00:00:00Z&to=2026-01-01T00:00:00Z", 422, "to"),
        ("from=2026-01-02T00:00:00", 422, "from"),
        ("from=yesterday", 400, "from"),
        ("to=0.5", 400, "to"),
        ("query=x", 400, "query"),
    ],
)
async def test_a_bad_search_names_its_field(api, query, status, field):
    code = "invalid_request" if status == 400 else "invalid_value"
    problem(await api.http.get(f"/v1/messages?{query}"), status, code, field)


@pytest.mark.parametrize(
    ("query", "status", "field"),
    [
        ("by=year", 400, "by"),
        ("user_id=", 422, "user_id"),
        ("from=2026-01-02T00:00:00Z&to=2026-01-01T00:00:00Z", 422, "to"),
        ("from=2020-01-02T00:00:00Z", 422, "from"),
        ("to=1", 400, "to"),
    ],
)
async def test_a_bad_question_for_counts_names_its_field(api, query, status, field):
    code = "invalid_request" if status == 400 else "invalid_value"
    problem(await api.http.get(f"/v1/stats?{query}"), status, code, field)


async def test_turns_and_tokens_are_counted_and_not_shown_with_messages(api):
    await said(api)
    stats = (await api.http.get("/v1/stats?by=model")).json()
    assert stats == {
        "items": [
            {
                "key": key,
                "messages": 1,
                "turns": turns,
                "input_tokens": 5 * turns,
                "output_tokens": 2 * turns,
                "active_sessions": 1,
            }
            for key, turns in ((None, 0), ("m", 1))
        ],
        "truncated": False,
    }
    items = (await api.http.get("/v1/sessions/ada/messages")).json()["items"]
    assert all("cost" not in item for item in items)


async def test_messages_are_searched_across_sessions(api):
    await append(api, "a", "red apple", "green apple")
    await append(api, "b", "red cherry")
    page = (await api.http.get("/v1/messages?q=Apple&limit=1")).json()
    assert [(item["session_id"], item["content"]) for item in page["items"]] == [
        ("a", "green apple")
    ]
    rest = (await api.http.get(f"/v1/messages?q=apple&cursor={page['next_cursor']}")).json()
    assert [item["content"] for item in rest["items"]] == ["red apple"]
    assert rest["next_cursor"] is None
    assert page["items"][0]["id"] <= page["archived_through"]
    assert (await api.http.get("/v1/messages?session_id=nobody")).json()["items"] == []


async def test_a_cursor_is_a_place_in_the_order_whoever_it_came_from(api):
    first = (await append(api, "s", "a", "b")).json()["messages"][0]["id"]
    await eventually(lambda: time.time_ns() // 10**6 > id_milliseconds(first) + 1, within_seconds=1)
    await append(api, "other", "secret")
    other = (await api.http.get("/v1/sessions/other/messages")).json()["items"][0]["id"]
    for cursor, order, contents in [
        (first, "after", ["b"]),
        (other, "before", ["a", "b"]),
        (other, "after", []),
    ]:
        page = await api.http.get(f"/v1/sessions/s/messages?{order}={cursor}")
        assert [item["content"] for item in page.json()["items"]] == contents
    for query in ("after=s:1", "before=eyJhIjoxfQ", "after=" + first[:-1]):
        field = query.partition("=")[0]
        refused = await api.http.get(f"/v1/sessions/s/messages?{query}")
        problem(refused, 422, "invalid_value", field)
        refused = await api.http.get(f"/v1/sessions?cursor={query.partition('=')[2]}")
        problem(refused, 422, "invalid_value", "cursor")


@pytest.mark.parametrize("path", ["/", "/nope", "/history", "/history/", "/history/a/b", "/v1"])
async def test_an_unknown_path_is_a_problem(api, path):
    problem(await api.http.get(path), 404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", "/chat", {"POST", "OPTIONS"}), ("POST", "/history/a", {"GET", "DELETE", "OPTIONS"})],
)
async def test_a_wrong_method_names_the_right_ones(api, method, path, allowed):
    response = await api.http.request(method, path)
    problem(response, 405, "method_not_allowed")
    assert set(response.headers["allow"].split(", ")) == allowed


async def test_options_beside_a_query_name_the_methods(api):
    response = await api.http.options("/v1/sessions?limit=1")
    assert response.status_code == 204
    assert "POST" in response.headers["allow"]


# --- around it ------------------------------------------------------------------------------------


async def test_a_callers_trace_goes_on(api):
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    parent = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
    response = await api.http.get("/nope", headers=parent)
    assert problem(response, 404, "not_found")["trace_id"] == trace
    for bad in ("00-xyz", f"00-{'0' * 32}-00f067aa0ba902b7-01"):
        response = await api.http.get("/nope", headers={"traceparent": bad})
        assert len(problem(response, 404, "not_found")["trace_id"]) == 32


async def test_requests_are_observed_by_template(api):
    await api.http.get("/history/secret-name")
    await api.http.get("/secret-name")
    await api.http.put("/secret-name")
    seen = [(o.method, o.route, o.status) for o in api.recorder.of(RequestServed)]
    assert seen == [
        ("GET", "/history/{session_id}", 200),
        ("*", "unrouted", 404),
        ("*", "unrouted", 404),
    ]


async def test_health(api):
    assert (await api.http.get("/health/live")).json() == {"status": "live"}
    ready = await api.http.get("/health/ready")
    assert (ready.status_code, ready.json()["status"]) == (200, "ready")
    api.readiness.drain()
    draining = await api.http.get("/health/ready")
    assert (draining.status_code, draining.json()["draining"]) == (503, True)
    assert (await api.http.get("/health/live")).status_code == 200


async def test_the_document_describes_every_route_and_its_problems(api):
    document = (await api.http.get("/openapi.json")).json()
    assert document["openapi"].startswith("3.1")
    operations = {
        operation["operationId"]: operation
        for path in document["paths"].values()
        for operation in path.values()
    }
    assert set(operations) >= {
        *("chat", "get_history", "clear_history", "create_session", "list_sessions"),
        *("get_session", "patch_session", "delete_session", "append_messages"),
        *("list_messages", "clear_messages", "get_context", "chat_in_session"),
    }
    for name, operation in operations.items():
        assert operation["summary"], name
        for status, response in operation["responses"].items():
            if int(status) >= 400 and not name.startswith("get_readiness"):
                assert set(response["content"]) == {"application/problem+json"}, (name, status)
    parameters = {p["name"] for p in operations["chat"]["parameters"]}
    assert "Idempotency-Key" in parameters
    body = operations["chat"]["requestBody"]["content"]["application/json"]["schema"]
    schema = document["components"]["schemas"][body["$ref"].rpartition("/")[2]]
    assert schema["properties"]["user_id"]["maxLength"] == 255
    assert "robot" not in json.dumps(document)


async def test_the_documentation_needs_no_internet(api):
    page = await api.http.get("/docs")
    assert page.status_code == 200
    assert "http" not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for asset in ("swagger-ui-bundle.js", "swagger-ui.css", "start.js", "favicon-32x32.png"):
        assert asset in page.text
        assert (await api.http.get(f"/docs/assets/{asset}")).status_code == 200
    problem(await api.http.get("/docs/assets/..%2Fapp.py"), 404, "not_found")


async def test_documentation_can_be_switched_off(model):
    async with api_client(model, docs=False) as api:
        for path in ("/docs", "/openapi.json", "/docs/assets/start.js"):
            problem(await api.http.get(path), 404, "not_found")
