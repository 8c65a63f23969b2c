"""Turns that call tools and go on with their results, over real servers and every store."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import asyncpg
import pytest
from redis.asyncio import Redis

from service.bootstrap.ambient import SystemClock
from service.bootstrap.flushers import open_flusher
from service.domain.errors import ModelError
from service.domain.observations import TurnEnded
from service.settings import Settings
from tests.support.api import api_client, problem
from tests.support.model_server import ModelServer, Reply
from tests.support.openai_models import model_of
from tests.support.polling import eventually
from tests.support.scripted_model import answer_of, calls_of
from tests.support.serving import Process, process
from tests.support.stores import Recorder
from tests.support.traces import in_postgres, in_redis

CHAT = "/v1/sessions/s/chat"
TOOLS = [
    {
        "type": "function",
        "function": {"name": "look", "parameters": {"type": "object", "properties": {}}},
    }
]
ASKED = {"message": "look around", "tools": TOOLS, "tool_choice": "auto"}


@pytest.fixture(params=["memory", "postgres", "redis", "hybrid"])
def settings(request: pytest.FixtureRequest) -> Settings:
    of_postgres = request.param in {"postgres", "hybrid"}
    of_redis = request.param in {"redis", "hybrid"}
    return Settings(
        store=request.param,
        database_url=request.getfixturevalue("database_url") if of_postgres else None,
        redis_url=request.getfixturevalue("redis_url") if of_redis else None,
        turn_lease_seconds=2.0,
    )


@pytest.fixture
async def here(settings: Settings) -> AsyncGenerator[Process]:
    async with process(settings) as opened:
        yield opened


@pytest.fixture
async def one() -> AsyncGenerator[Process]:
    """What does not depend on the store."""
    async with process(Settings(store="memory")) as opened:
        yield opened


def results(**contents: Any) -> dict[str, Any]:
    given = [{"tool_call_id": name, "content": text} for name, text in contents.items()]
    return {"results": given}


def path(turn: dict[str, Any]) -> str:
    return f"/v1/sessions/s/turns/{turn['turn_id']}/tool-results"


async def called(at: Process, *names: str, **fields: Any) -> dict[str, Any]:
    """A turn that waits for the results of calls with these ids."""
    at.model.script.append(calls_of(*(names or ("c1",))))
    response = await at.http.post(CHAT, json=ASKED | fields)
    assert response.status_code == 200, response.text
    return response.json()


async def roles(at: Process) -> list[str]:
    return [role for role, _, _ in await at.messages()]


async def test_a_turn_goes_on_with_all_results_as_it_was_asked(here):
    asked = {
        "instructions": "Be brief.",
        "temperature": 0.5,
        "max_output_tokens": 50,
        "model": "another",
        "response_format": {"type": "json_object"},
        "user_id": "u",
    }
    await here.http.post(CHAT, json={"message": "before", "user_id": "u"})
    turn = await called(here, "c1", "c2", **asked)
    assert (turn["state"], turn["response"]) == ("completed", None)
    assert [call["id"] for call in turn["tool_calls"]] == ["c1", "c2"]
    assert turn["message"]["tool_calls"] == turn["tool_calls"]

    here.model.script.append(answer_of("a lamp"))
    response = await here.http.post(path(turn), json=results(c2="dark", c1=[{"type": "text"}]))
    ended = response.json()
    assert response.status_code == 200, response.text
    assert (ended["turn_id"], ended["state"]) == (turn["turn_id"], "completed")
    assert ended["response"] == "echo: a lamp"
    assert ended["user_message_id"] == turn["user_message_id"]
    assert ended["usage"]["input_tokens"] == 15
    assert ended["usage"]["cached_tokens"] == 4
    assert await here.turn(turn["turn_id"]) == ended

    first, second = here.model.prompts[-2:]
    assert second.messages[: len(first.messages)] == first.messages
    assert second.messages[len(first.messages) :] == (
        {"role": "assistant", "content": None, "tool_calls": turn["tool_calls"]},
        {"role": "tool", "content": [{"type": "text"}], "tool_call_id": "c1"},
        {"role": "tool", "content": "dark", "tool_call_id": "c2"},
    )
    same = ("model", "temperature", "max_output_tokens", "tools", "response_format")
    assert [getattr(second, name) for name in same] == [getattr(first, name) for name in same]
    assert first.tools == TOOLS

    said = (await here.http.get("/v1/sessions/s/messages")).json()["items"][2:]
    assert [item["role"] for item in said] == ["user", "assistant", "tool", "tool", "assistant"]
    assert {item["turn_id"] for item in said} == {turn["turn_id"]}
    assert [item["id"] for item in said] == sorted(item["id"] for item in said)


async def test_the_next_turn_is_shown_calls_and_results(here):
    turn = await called(here)
    note = {"messages": [{"role": "system", "content": "It is night."}]}
    await here.http.post("/v1/sessions/s/messages", json=note)
    assert (await here.http.post(path(turn), json=results(c1="dark"))).status_code == 200
    await here.http.post(CHAT, json={"message": "and now?"})
    shown = [message["role"] for message in here.model.prompts[-1].messages]
    # Stored as it came; shown with the result right behind its call.
    assert await roles(here) == [
        *("user", "assistant", "system", "tool", "assistant"),
        *("user", "assistant"),
    ]
    assert shown == ["user", "assistant", "tool", "system", "assistant", "user"]


async def test_a_turn_may_call_tools_again_and_again(here):
    turn = await called(here)
    for number in range(3):
        here.model.script.append(calls_of(f"d{number}"))
        name = "c1" if number == 0 else f"d{number - 1}"
        turn = (await here.http.post(path(turn), json=results(**{name: str(number)}))).json()
        assert [call["id"] for call in turn["tool_calls"]] == [f"d{number}"]
    ended = (await here.http.post(path(turn), json=results(d2="3"))).json()
    assert ended["state"] == "completed"
    assert "tool_calls" not in ended
    assert await roles(here) == ["user", *["assistant", "tool"] * 4, "assistant"]
    contents = [message["content"] for message in here.model.prompts[-1].messages]
    assert contents == ["look around", None, "0", None, "1", None, "2", None, "3"]


async def test_results_are_taken_once(here):
    turn = await called(here)
    answers = await asyncio.gather(
        *(here.http.post(path(turn), json=results(c1=str(n))) for n in range(5))
    )
    assert sorted(answer.status_code for answer in answers) == [200, 409, 409, 409, 409]
    for answer in answers:
        if answer.status_code == 409:
            assert answer.json()["code"] in {"turn_state", "session_busy"}
            assert answer.headers["x-should-retry"] == "false"
    problem(await here.http.post(path(turn), json=results(c1="late")), 409, "turn_state")
    assert await roles(here) == ["user", "assistant", "tool", "assistant"]


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"results": []}, "results"),
        (results(c1="1"), "results"),
        (results(c1="1", c2="2", c3="3"), "results[2].tool_call_id"),
        (
            {"results": [*results(c1="1", c2="2")["results"], *results(c1="3")["results"]]},
            "results[2].tool_call_id",
        ),
        (results(c1="1", c2="\x00"), "results[1].content"),
        (results(c1="1" * 1001, c2="2"), "results[0].content"),
        (results(c1=[{"no": "type"}], c2="2"), "results[0].content[0].type"),
    ],
)
async def test_results_that_do_not_fit_name_the_field_and_change_nothing(one, given, field):
    turn = await called(one, "c1", "c2")
    for headers in ({}, {"Idempotency-Key": "k"}):
        response = await one.http.post(path(turn), json=given, headers=headers)
        problem(response, 422, "invalid_value", field)
    assert await roles(one) == ["user", "assistant"]
    assert len(one.model.prompts) == 1
    fitting = await one.http.post(path(turn), json=results(c1="", c2="2"))
    assert fitting.status_code == 200, fitting.text


async def test_a_repeated_key_returns_the_same_answer(here):
    turn = await called(here)
    headers = {"Idempotency-Key": "k"}
    here.model.script.append(calls_of("c2"))
    first = await here.http.post(path(turn), json=results(c1="1"), headers=headers)
    again = await here.http.post(path(turn), json=results(c1="1"), headers=headers)
    assert again.headers["Idempotency-Replayed"] == "true"
    assert again.json() == first.json()
    streamed = [
        event
        async for event in here.events(
            path(turn), json=results(c1="1") | {"stream": True}, headers=headers
        )
    ]
    assert streamed[-1].data == first.json()
    other = await here.http.post(path(turn), json=results(c1="2"), headers=headers)
    problem(other, 422, "idempotency_key_reused")

    assert (await here.http.post(path(turn), json=results(c2="2"))).status_code == 200
    # Also when the turn has gone on since.
    again = await here.http.post(path(turn), json=results(c1="1"), headers=headers)
    assert again.json() == first.json()
    assert await roles(here) == ["user", "assistant", "tool", "assistant", "tool", "assistant"]


async def test_a_repeated_key_joins_the_turn_that_runs(here):
    turn = await called(here)
    here.model.gate = asyncio.Event()
    here.model.asked.clear()
    headers = {"Idempotency-Key": "k"}
    posts = [
        asyncio.ensure_future(here.http.post(path(turn), json=results(c1="1"), headers=headers))
    ]
    await here.model.asked.wait()
    posts += [
        asyncio.ensure_future(here.http.post(path(turn), json=results(c1="1"), headers=headers))
        for _ in range(3)
    ]
    problem(await here.http.post(path(turn), json=results(c1="1")), 409, "turn_state")
    assert (await here.turn(turn["turn_id"]))["state"] == "running"
    here.model.gate.set()
    answers = await asyncio.gather(*posts)
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) == 1
    assert len(here.model.prompts) == 2


async def test_the_same_results_run_a_turn_again_whose_model_failed(here):
    turn = await called(here)
    here.model.script.append(ModelError("no"))
    failed = await here.http.post(path(turn), json=results(c1="1"))
    problem(failed, 502, "model_error")
    assert (await here.turn(turn["turn_id"]))["state"] == "failed"
    problem(await here.http.post(path(turn), json=results(c1="2")), 409, "turn_state")

    ended = await here.http.post(path(turn), json=results(c1="1"))
    assert ended.status_code == 200, ended.text
    first, second = here.model.prompts[-2:]
    assert first.messages == second.messages
    assert await roles(here) == ["user", "assistant", "tool", "assistant"]


@pytest.mark.parametrize("key", [{"Idempotency-Key": "other"}, {}])
async def test_a_key_whose_turn_another_call_ended_runs_nothing_again(here, key):
    turn = await called(here)
    here.model.script.append(ModelError("no"))
    mine = {"Idempotency-Key": "k"}
    failed = await here.http.post(path(turn), json=results(c1="1"), headers=mine)
    problem(failed, 502, "model_error")
    assert (await here.http.post(path(turn), json=results(c1="1"), headers=key)).status_code == 200
    again = await here.http.post(path(turn), json=results(c1="1"), headers=mine)
    problem(again, 409, "turn_state")
    assert await roles(here) == ["user", "assistant", "tool", "assistant"]


async def test_what_is_said_between_ends_the_waiting(here):
    turn = await called(here)
    assert (await here.http.post(CHAT, json={"message": "never mind"})).status_code == 200
    # Half of a call is never shown.
    assert [m["role"] for m in here.model.prompts[-1].messages] == ["user", "user"]
    problem(await here.http.post(path(turn), json=results(c1="1")), 409, "turn_state")
    assert await roles(here) == ["user", "assistant", "user", "assistant"]


async def test_a_turn_that_waits_for_nothing_takes_no_results(here):
    plain = (await here.http.post(CHAT, json={"message": "hi"})).json()
    problem(await here.http.post(path(plain), json=results(c1="1")), 409, "turn_state")
    unknown = {"turn_id": "8d1f4c1e-0000-4000-8000-000000000000"}
    problem(await here.http.post(path(unknown), json=results(c1="1")), 404, "not_found")
    # A call that was cut off is not whole.
    here.model.script.append(calls_of("c1", text="let me", complete=False))
    cut = (await here.http.post(CHAT, json=ASKED)).json()
    assert cut["state"] == "incomplete"
    problem(await here.http.post(path(cut), json=results(c1="1")), 409, "turn_state")


@pytest.mark.parametrize("forget", ["messages", "session"])
async def test_a_turn_of_a_forgotten_session_does_not_go_on(here, forget):
    turn = await called(here)
    at = "/v1/sessions/s/messages" if forget == "messages" else "/v1/sessions/s"
    assert (await here.http.delete(at)).status_code == 204
    response = await here.http.post(path(turn), json=results(c1="1"))
    if forget == "messages":
        problem(response, 409, "turn_state")
    else:
        problem(response, 404, "not_found")


async def test_a_tool_turn_ends_once_in_the_metrics(one):
    turn = await called(one)
    await one.http.post(path(turn), json=results(c1="1"))
    outcomes = [ended.outcome for ended in one.client.recorder.of(TurnEnded)]
    assert outcomes == ["tool_calls", "completed"]


@pytest.mark.parametrize("store", ["memory", "postgres"])
async def test_a_tool_turn_counts_as_one_turn_with_all_its_tokens(database_url, store):
    async with process(Settings(store=store, database_url=database_url)) as here:
        turn = await called(here, user_id="u")
        await here.http.post(path(turn), json=results(c1="1"))
        answer = await here.http.get("/v1/stats", params={"user_id": "u", "by": "user"})
        [item] = answer.json()["items"]
        assert (item["messages"], item["turns"]) == (4, 1)
        assert (item["input_tokens"], item["output_tokens"]) == (15, 5)


@pytest.mark.parametrize("store", ["postgres", "redis", "hybrid"])
async def test_a_deleted_session_leaves_nothing_of_its_tools(database_url, redis_url, store):
    settings = Settings(store=store, database_url=database_url, redis_url=redis_url)
    async with process(settings) as here:
        waiting = await called(here, instructions="planted: be brief", user_id="u")
        here.model.script.append(ModelError("no"))
        failed = await here.http.post(path(waiting), json=results(c1="planted: dark"))
        problem(failed, 502, "model_error")
        again = await here.http.post(path(waiting), json=results(c1="planted: dark"))
        assert again.status_code == 200, again.text
        await called(here, "planted", instructions="planted: be brief", user_id="u")
        assert b"planted" in await everything(database_url, redis_url)
        assert (await here.http.delete("/v1/sessions/s")).status_code == 204
        if store == "hybrid":
            async with open_flusher(settings, clock=SystemClock(), observer=Recorder()) as (
                flusher,
                ownership,
            ):
                await ownership.renew()
                while await flusher.flush_once():
                    pass
        assert b"planted" not in await everything(database_url, redis_url)


@pytest.mark.parametrize("store", ["postgres", "redis", "hybrid"])
async def test_cleared_messages_leave_nothing_to_go_on_with(database_url, redis_url, store):
    settings = Settings(store=store, database_url=database_url, redis_url=redis_url)
    async with process(settings) as here:
        turn = await called(here, instructions="planted: be brief")
        assert (await here.http.delete("/v1/sessions/s/messages")).status_code == 204
        assert b"planted" not in await everything(database_url, redis_url)
        problem(await here.http.post(path(turn), json=results(c1="1")), 409, "turn_state")


async def everything(database_url: str, redis_url: str) -> bytes:
    async with Redis.from_url(redis_url, protocol=2) as redis:
        found = await in_redis(redis)
    connection = await asyncpg.connect(database_url)
    found += await in_postgres(connection)
    await connection.close()
    return found


async def test_tool_calls_and_the_answer_to_their_results_are_streamed(here):
    here.model.script.append(calls_of("c1", "c2", text="let me look"))
    first = [event async for event in here.events(CHAT, json=ASKED | {"stream": True})]
    assert [event.name for event in first if event.name != "delta"] == [
        "turn.started",
        "turn.completed",
    ]
    parts = [event.data["tool_calls"] for event in first if "tool_calls" in event.data]
    turn = first[-1].data
    assert parts[0] == turn["tool_calls"]
    assert turn["response"] == "let me look"

    here.model.script.append(answer_of("a lamp and a door"))
    body = results(c1="lamp", c2="door") | {"stream": True}
    second = [event async for event in here.events(path(turn), json=body)]
    assert second[0].data["turn_id"] == turn["turn_id"]
    text = "".join(event.data["text"] for event in second if event.name == "delta")
    assert text == "echo: a lamp and a door"
    assert second[-1].data["response"] == text
    # Who joins now is told the turn's last answer; a place in the first one is not one in this.
    after = {"last-event-id": first[1].id}
    joined = [event async for event in here.joined(turn["turn_id"], **after)]
    assert "".join(event.data["text"] for event in joined if event.name == "delta") == text


@pytest.mark.parametrize("store", ["postgres", "redis", "hybrid"])
async def test_a_turn_goes_on_in_another_process_and_is_followed_from_the_first(
    database_url, redis_url, store
):
    settings = Settings(store=store, database_url=database_url, redis_url=redis_url)
    async with process(settings) as first, process(settings) as other:
        turn = await called(first)
        other.model.word_gate = asyncio.Semaphore(2)
        other.model.script.append(answer_of("one two three"))
        body = results(c1="1") | {"stream": True}
        posting = asyncio.ensure_future(_all(other.events(path(turn), json=body)))
        await eventually(lambda: _is(first, turn, "running"), within_seconds=5)
        following = asyncio.ensure_future(_all(first.joined(turn["turn_id"])))
        for _ in range(5):
            other.model.word_gate.release()
        posted, followed = await asyncio.gather(posting, following)
        assert followed[-1].data == posted[-1].data
        texts = [
            "".join(event.data["text"] for event in events if event.name == "delta")
            for events in (posted, followed)
        ]
        assert texts == ["echo: one two three"] * 2


async def _all(events: AsyncGenerator[Any]) -> list[Any]:
    return [event async for event in events]


async def _is(at: Process, turn: dict[str, Any], state: str) -> bool:
    return (await at.turn(turn["turn_id"]))["state"] == state


async def test_what_was_demanded_of_the_first_call_is_not_demanded_again(one):
    named = {"type": "function", "function": {"name": "look"}}
    for choice, later in (("required", None), (named, None), ("auto", None), ("none", "none")):
        turn = await called(one, tool_choice=choice)
        assert one.model.prompts[-1].tool_choice == choice
        assert (await one.http.post(path(turn), json=results(c1="1"))).status_code == 200
        assert one.model.prompts[-1].tool_choice == later


async def test_calls_without_ids_of_their_own_get_some(one):
    answer = calls_of("same", "same", "")
    assert answer.tool_calls is not None
    del answer.tool_calls[2]["id"]
    one.model.script.append(answer)
    turn = (await one.http.post(CHAT, json=ASKED)).json()
    names = [call["id"] for call in turn["tool_calls"]]
    assert names[0] == "same"
    assert len({*names}) == 3
    given = results(**dict.fromkeys(names, "x"))
    assert (await one.http.post(path(turn), json=given)).status_code == 200


@pytest.mark.parametrize("name", ["x" * 16_385, "nul\x00", 7])
async def test_ids_that_no_result_could_name_are_replaced(one, name):
    answer = calls_of("c1")
    assert answer.tool_calls is not None
    answer.tool_calls[0]["id"] = name
    one.model.script.append(answer)
    turn = (await one.http.post(CHAT, json=ASKED)).json()
    [call] = turn["tool_calls"]
    assert call["id"] != name
    given = await one.http.post(path(turn), json=results(**{call["id"]: "x"}))
    assert given.status_code == 200, given.text


async def test_an_id_may_be_long(one):
    turn = await called(one, "x" * 16_384)
    body = results(**{"x" * 16_384: "1"})
    assert (await one.http.post(path(turn), json=body)).status_code == 200


async def test_results_that_are_repeated_are_none_of_the_next_calls(here):
    turn = await called(here, "c1")
    here.model.script.append(calls_of("c1"))
    again = (await here.http.post(path(turn), json=results(c1="1"))).json()
    [call] = again["tool_calls"]
    assert call["id"] != "c1"
    problem(await here.http.post(path(turn), json=results(c1="1")), 422, "invalid_value")
    given = await here.http.post(path(turn), json=results(**{call["id"]: "2"}))
    assert given.status_code == 200, given.text


async def test_images_and_files_pass_through(here):
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    file = {"type": "file", "file": {"filename": "a.pdf", "file_data": "AAAA"}}
    parts = [{"type": "text", "text": "what is this?"}, image, file]
    response = await here.http.post(CHAT, json={"message": parts})
    assert response.status_code == 200, response.text
    assert response.json()["context"]["tokens"] > 2 * 1105
    assert here.model.prompts[-1].messages == ({"role": "user", "content": parts},)
    appended = {"messages": [{"role": "user", "content": [image]}]}
    assert (await here.http.post("/v1/sessions/s/messages", json=appended)).status_code == 201
    await here.http.post(CHAT, json={"message": "and these?"})
    contents = [message["content"] for message in here.model.prompts[-1].messages]
    assert (contents[0], contents[2]) == (parts, [image])


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        ([], "message"),
        ([{"text": "x"}], "message[0].type"),
        ([{"type": "text", "text": "x" * 1001}], "message"),
        ([{"type": "text", "text": "\x00"}], "message"),
    ],
)
async def test_parts_out_of_range_name_the_field(one, parts, field):
    problem(await one.http.post(CHAT, json={"message": parts}), 422, "invalid_value", field)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"tools": []}, "tools"),
        ({"tools": TOOLS * 129}, "tools"),
        ({"tools": [{"function": {}}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "x": "y" * 1000}]}, "tools"),
        ({"tools": [{"type": "function", "x": "\x00"}]}, "tools"),
        ({"tools": None}, "tool_choice"),
        ({"tool_choice": "maybe"}, "tool_choice"),
        ({"tool_choice": {"name": "look"}}, "tool_choice.type"),
        ({"tool_choice": {"type": "function", "x": "y" * 1000}}, "tool_choice"),
        ({"response_format": {}}, "response_format.type"),
        ({"response_format": {"type": "json_schema", "x": "y" * 1000}}, "response_format"),
    ],
)
async def test_tools_out_of_range_name_the_field_and_change_nothing(one, fields, field):
    response = await one.http.post(CHAT, json=ASKED | fields)
    problem(response, 422, "invalid_value", field)
    assert one.model.prompts == []
    problem(await one.http.get("/v1/sessions/s"), 404, "not_found")


async def test_tools_and_results_count_in_the_budget(one):
    small = {"context": {"strategy": "tokens", "max_tokens": 60}}
    large = [{"type": "function", "function": {"name": "f", "description": "word " * 60}}]
    response = await one.http.post(CHAT, json=ASKED | small | {"tools": large})
    problem(response, 422, "context_too_large")
    turn = await called(one, **small, tools=[{"type": "function"}])
    assert turn["context"]["tokens"] <= 60
    response = await one.http.post(path(turn), json=results(c1="word " * 60))
    problem(response, 422, "context_too_large")
    assert await roles(one) == ["user", "assistant"]
    assert (await one.http.post(path(turn), json=results(c1="short"))).status_code == 200


async def test_a_turn_that_would_grow_without_end_is_refused(one, monkeypatch):
    monkeypatch.setattr("service.core.resuming.TURN_BYTES_MAX", 2000)
    turn = await called(one)
    one.model.script.append(calls_of("c2"))
    turn = (await one.http.post(path(turn), json=results(c1="x" * 900))).json()
    response = await one.http.post(path(turn), json=results(c2="x" * 900))
    problem(response, 422, "invalid_value", "results")
    assert (await one.http.post(path(turn), json=results(c2="x"))).status_code == 200


async def test_a_window_shows_what_was_before_the_turn(one):
    for number in range(5):
        await one.http.post(CHAT, json={"message": str(number)})
    turn = await called(one, context={"strategy": "window", "last": 2})
    await one.http.post(path(turn), json=results(c1="1"))
    contents = [message["content"] for message in one.model.prompts[-1].messages]
    assert contents == ["4", "echo: 4", "look around", None, "1"]


@pytest.mark.parametrize("wire", ["chat_completions", "responses"])
async def test_a_model_server_gets_tools_and_results_in_its_own_words(wire):
    function = {"name": "look", "arguments": '{"at":"it"}'}
    call = {"id": "c1", "type": "function", "function": function}
    async with ModelServer() as server:
        server.script(Reply(tool_calls=[call], finish_reason="tool_calls"), Reply(text="a lamp"))
        models = model_of(Recorder(), base_url=server.base_url, api=wire)
        async with models as model, api_client(model, Settings(store="memory")) as api:
            turn = (await api.http.post(CHAT, json=ASKED)).json()
            assert turn["tool_calls"] == [call]
            ended = (await api.http.post(path(turn), json=results(c1="dark"))).json()
            assert ended["response"] == "a lamp"

    first, second = server.requests
    assert first["tools"] == second["tools"]
    if wire == "chat_completions":
        assert first["tools"] == TOOLS
        assert second["messages"][-2:] == [
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "dark", "tool_call_id": "c1"},
        ]
    else:
        assert first["tools"][0]["name"] == "look"
        said, result = second["input"][-2:]
        assert (said["type"], said["call_id"], said["name"]) == ("function_call", "c1", "look")
        assert result == {"type": "function_call_output", "call_id": "c1", "output": "dark"}
