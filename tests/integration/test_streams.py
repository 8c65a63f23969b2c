"""Turns as streams, over real servers: left, joined from elsewhere, cancelled, cut off."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from service.domain.errors import HotUnavailable
from service.domain.sessions import SessionRef
from service.ports import Finished
from service.settings import Settings
from tests.support.polling import eventually
from tests.support.scripted_model import answer_of, calls_of
from tests.support.serving import Event, Process, process

CHAT = "/v1/sessions/s/chat"
ASKED = {"message": "one two three four", "stream": True}
SAID = "echo: one two three four"


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


@pytest.fixture(params=["postgres", "redis", "hybrid"])
def shared(request: pytest.FixtureRequest, database_url: str, redis_url: str) -> Settings:
    return Settings(
        store=request.param,
        database_url=None if request.param == "redis" else database_url,
        redis_url=None if request.param == "postgres" else redis_url,
    )


@pytest.fixture
async def two(shared: Settings) -> AsyncGenerator[tuple[Process, Process]]:
    async with process(shared) as one, process(shared) as other:
        yield one, other


def text_of(events: list[Event]) -> str:
    return "".join(event.data["text"] for event in events if event.name == "delta")


def at(started: Event, place: str) -> str:
    """The id of a place in the attempt that began so."""
    return f"{started.id.partition('.')[0]}.{place}"


async def all_of(events: AsyncGenerator[Event]) -> list[Event]:
    return [event async for event in events]


async def left_after(process: Process, words: int, **fields: Any) -> list[Event]:
    """The events of a turn whose caller goes after so many words, while others wait."""
    process.model.word_gate = asyncio.Semaphore(words)
    seen: list[Event] = []
    async with aclosing(process.events(CHAT, json=ASKED | fields)) as events:
        async for event in events:
            seen.append(event)
            if sum(one.name == "delta" for one in seen) == words:
                return seen
    raise AssertionError("ended before")


def go_on(process: Process) -> None:
    assert process.model.word_gate is not None
    for _ in range(100):
        process.model.word_gate.release()


async def test_a_turn_is_told_piece_by_piece_and_stored_as_a_plain_one_is(here):
    events = await all_of(here.events(CHAT, json=ASKED))
    assert [event.name for event in events] == ["turn.started", *["delta"] * 5, "turn.completed"]
    started, *deltas, ended = events
    assert started.data["session_id"] == "s"
    assert text_of(events) == SAID
    places = ["6-0", "10-0", "14-0", "20-0", "24-0"]
    assert [event.id for event in deltas] == [at(started, place) for place in places]
    assert ended.id == at(started, "end")
    turn = ended.data
    assert (turn["state"], turn["response"]) == ("completed", SAID)
    assert turn["turn_id"] == started.data["turn_id"]
    assert turn["user_message_id"] == started.data["user_message_id"]
    assert turn["usage"]["total_tokens"] == 7
    assert await here.messages() == [("user", ASKED["message"], None), ("assistant", SAID, None)]
    assert await here.turn(turn["turn_id"]) == turn
    again = await all_of(here.joined(turn["turn_id"]))
    assert [event.name for event in again] == ["turn.started", "delta", "turn.completed"]
    assert (text_of(again), again[-1].data) == (SAID, turn)


async def test_who_leaves_loses_nothing_and_joins_again_where_it_was(here):
    seen = await left_after(here, 2)
    turn_id = seen[0].data["turn_id"]
    assert (await here.turn(turn_id))["state"] == "running"
    joining = asyncio.ensure_future(all_of(here.joined(turn_id, **{"last-event-id": seen[-1].id})))
    go_on(here)
    rest = await joining
    assert text_of(seen) + text_of(rest) == SAID
    assert "turn.started" not in [event.name for event in rest]
    assert rest[-1].data["state"] == "completed"
    assert [role for role, _, _ in await here.messages()] == ["user", "assistant"]


async def test_a_turn_goes_on_when_everybody_has_left(here):
    [started] = await left_after(here, 0)
    go_on(here)

    async def completed() -> bool:
        return (await here.turn(started.data["turn_id"]))["state"] == "completed"

    await eventually(completed, within_seconds=5)
    assert (await here.messages())[1] == ("assistant", SAID, None)
    tail = await all_of(
        here.joined(started.data["turn_id"], **{"last-event-id": at(started, "10-0")})
    )
    assert text_of(tail) == "two three four"
    end = await all_of(
        here.joined(started.data["turn_id"], **{"last-event-id": at(started, "end")})
    )
    assert [event.name for event in end] == ["turn.completed"]


async def test_a_turn_is_joined_from_another_process(two):
    one, other = two
    seen = await left_after(one, 2)
    turn_id = seen[0].data["turn_id"]
    sent = {"last-event-id": at(seen[0], "6-0")}
    joining = asyncio.ensure_future(all_of(other.joined(turn_id, **sent)))
    await asyncio.sleep(0.3)  # So that it has looked at what there is before there is more.
    assert not joining.done()
    go_on(one)
    rest = await joining
    assert text_of(rest) == "one two three four"
    assert rest[-1].data == await one.turn(turn_id)


async def test_a_turn_is_cancelled_from_another_process_within_a_second(two):
    one, other = two
    seen = await left_after(one, 2)
    turn_id = seen[0].data["turn_id"]
    async with asyncio.timeout(1.5):
        answer = await other.http.post(f"/v1/sessions/s/turns/{turn_id}/cancel")
    turn = answer.json()
    assert (answer.status_code, turn["state"], turn["response"]) == (200, "cancelled", "echo: one ")
    assert await one.messages() == [
        ("user", ASKED["message"], None),
        ("assistant", "echo: one ", "incomplete"),
    ]
    again = await other.http.post(f"/v1/sessions/s/turns/{turn_id}/cancel")
    assert again.json() == turn
    # The session is free.
    one.model.word_gate = None
    assert (await other.http.post(CHAT, json={"message": "next"})).status_code == 200


async def test_a_turn_is_cancelled_before_it_said_anything(here):
    [started] = await left_after(here, 0)
    turn_id = started.data["turn_id"]
    turn = (await here.http.post(f"/v1/sessions/s/turns/{turn_id}/cancel")).json()
    assert (turn["state"], turn["message"]) == ("cancelled", None)
    assert [role for role, _, _ in await here.messages()] == ["user"]


async def test_a_stream_that_breaks_off_keeps_what_was_said(here):
    here.model.breaks_after = 2
    events = await all_of(here.events(CHAT, json=ASKED))
    turn = events[-1].data
    assert events[-1].name == "turn.completed"
    assert (turn["state"], turn["response"]) == ("incomplete", "echo: one ")
    assert turn["error"]["code"] == "model_error"
    assert (await here.messages())[1] == ("assistant", "echo: one ", "incomplete")
    assert len(here.model.prompts) == 1


async def test_a_stream_that_fails_before_it_says_anything_fails(here):
    here.model.breaks_after = 0
    headers = {"Idempotency-Key": "k"}
    events = await all_of(here.events(CHAT, json=ASKED, headers=headers))
    assert [event.name for event in events] == ["turn.started", "turn.failed"]
    turn = events[-1].data
    assert (turn["state"], turn["error"]["status"], turn["message"]) == ("failed", 502, None)
    assert await here.turn(turn["turn_id"]) == turn
    here.model.breaks_after = None
    again = await all_of(here.events(CHAT, json=ASKED, headers=headers))
    assert again[-1].data["state"] == "completed"
    assert again[0].data["turn_id"] == turn["turn_id"]
    assert [role for role, _, _ in await here.messages()] == ["user", "assistant"]


@pytest.mark.parametrize("streams", [True, False])
async def test_a_repeated_key_joins_the_running_turn_streamed_or_not(here, streams):
    headers = {"Idempotency-Key": "k"}
    here.model.word_gate = asyncio.Semaphore(2)
    first = asyncio.ensure_future(all_of(here.events(CHAT, json=ASKED, headers=headers)))
    await here.model.asked.wait()
    body = ASKED | {"stream": streams}
    if streams:
        joining: Any = asyncio.ensure_future(all_of(here.events(CHAT, json=body, headers=headers)))
    else:
        joining = asyncio.ensure_future(here.http.post(CHAT, json=body, headers=headers))
    await asyncio.sleep(0.2)  # So that it joins what runs rather than what has ended.
    go_on(here)
    turn = (await first)[-1].data
    other = await joining
    assert (other[-1].data if streams else other.json()) == turn
    assert len(here.model.prompts) == 1
    replayed = await all_of(here.events(CHAT, json=ASKED, headers=headers))
    assert (text_of(replayed), replayed[-1].data) == (SAID, turn)


async def test_a_clear_cancels_a_stream_and_a_deletion_ends_it(here):
    for path in ("/v1/sessions/s/messages", "/v1/sessions/s"):
        here.model.word_gate = asyncio.Semaphore(1)
        streaming = asyncio.ensure_future(all_of(here.events(CHAT, json=ASKED)))
        await here.model.asked.wait()
        here.model.asked.clear()
        assert (await here.http.delete(path)).status_code == 204
        async with asyncio.timeout(3):
            events = await streaming
        assert events[-1].name == "turn.completed"
        assert (events[-1].data["state"], events[-1].data["message"]) == ("cancelled", None)
    assert (await here.http.get("/v1/sessions/s")).status_code == 404


async def test_what_keeps_a_turn_from_its_begin_is_a_plain_answer(here):
    await left_after(here, 0)
    response = await here.http.post(CHAT, json=ASKED)
    assert (response.status_code, response.json()["code"]) == (409, "session_busy")
    unknown = "/v1/sessions/s/turns/nobody"
    for path in (unknown, f"{unknown}/events"):
        assert (await here.http.get(path)).status_code == 404
    assert (await here.http.post(f"{unknown}/cancel")).status_code == 404
    bad = await here.http.get(f"{unknown}/events", headers={"last-event-id": "x"})
    assert (bad.status_code, bad.json()["code"]) == (422, "invalid_value")


async def test_a_process_that_ends_interrupts_its_turns_and_others_are_told(two):
    one, other = two
    seen = await left_after(one, 1)
    turn_id = seen[0].data["turn_id"]
    joining = asyncio.ensure_future(all_of(other.joined(turn_id)))
    stopping = asyncio.ensure_future(one.client.use_cases.chat.stop())
    async with asyncio.timeout(3):
        events = await joining
    await stopping
    assert (events[-1].name, events[-1].data["state"]) == ("turn.failed", "interrupted")
    assert (await other.turn(turn_id))["state"] == "interrupted"
    assert (await other.http.post(CHAT, json={"message": "next"})).status_code == 200


async def test_calls_that_wait_are_answered_one_after_another_across_processes(two):
    one, other = two
    one.model.word_gate = asyncio.Semaphore(0)
    first = asyncio.ensure_future(all_of(one.events(CHAT, json=ASKED)))
    await one.model.asked.wait()
    waiting: list[Any] = []
    for number, asker in enumerate((other, one, other, one)):
        body = {"message": f"waiting {number}", "on_busy": "wait"}
        waiting.append(asyncio.ensure_future(asker.http.post(CHAT, json=body)))
        await asyncio.sleep(0.15)  # So that they arrive in this order.
    refused = await other.http.post(CHAT, json={"message": "no"})
    assert (refused.status_code, refused.headers["x-should-retry"]) == (409, "false")
    go_on(one)
    await first
    answers = [(await each).status_code for each in waiting]
    assert answers == [200] * 4
    said = [content for role, content, _ in await one.messages() if role == "user"]
    assert said == [ASKED["message"], *(f"waiting {number}" for number in range(4))]


async def test_a_wait_has_its_bound(hybrid_settings):
    short = msgspec.structs.replace(hybrid_settings, turn_wait_seconds=0.3)
    async with process(short) as here:
        await left_after(here, 0)
        response = await here.http.post(CHAT, json={"message": "no", "on_busy": "wait"})
        assert (response.status_code, response.json()["code"]) == (409, "session_busy")
        go_on(here)


async def test_a_turn_whose_caller_leaves_ends_where_that_is_set(hybrid_settings):
    ends = msgspec.structs.replace(hybrid_settings, turn_on_disconnect="cancel")
    async with process(ends) as here:
        seen = await left_after(here, 2)
        turn_id = seen[0].data["turn_id"]

        async def cancelled() -> bool:
            return (await here.turn(turn_id))["state"] == "cancelled"

        await eventually(cancelled, within_seconds=5)
        assert (await here.messages())[1] == ("assistant", "echo: one ", "incomplete")


async def test_who_leaves_ends_no_turn_that_others_read():
    async with process(Settings(store="memory", turn_on_disconnect="cancel")) as here:
        here.model.word_gate = asyncio.Semaphore(2)
        headers = {"Idempotency-Key": "k"}
        first = here.events(CHAT, json=ASKED, headers=headers)
        async with aclosing(first):
            assert (await anext(first)).name == "turn.started"
            second = here.events(CHAT, json=ASKED, headers=headers)
            seen = [await anext(second), await anext(second)]
        turn_id = seen[0].data["turn_id"]
        generation = here.client.use_cases.chat._generations.of(turn_id)
        assert generation is not None
        await eventually(lambda: generation._left, within_seconds=5)
        go_on(here)
        seen += await all_of(second)
        assert (text_of(seen), seen[-1].data["state"]) == (SAID, "completed")


async def test_who_leaves_an_ended_stream_ends_no_later_run_of_its_turn():
    async with process(Settings(store="memory", turn_on_disconnect="cancel")) as here:
        chat = here.client.use_cases.chat
        here.model.script.append(calls_of("c1"))
        turn = (await here.http.post(CHAT, json={"message": "look"})).json()
        ended = (await chat.events(SessionRef("default", "s"), turn["turn_id"])).turn
        here.model.gate = asyncio.Event()
        here.model.asked.clear()
        path = f"/v1/sessions/s/turns/{turn['turn_id']}/tool-results"
        body = {"results": [{"tool_call_id": "c1", "content": "1"}]}
        going_on = asyncio.ensure_future(here.http.post(path, json=body))
        await here.model.asked.wait()
        chat.left(ended)
        here.model.gate.set()
        assert (await going_on).json()["state"] == "completed"


async def test_an_answer_outlives_an_outage_of_its_store(redis_url, database_url):
    shared = Settings(store="hybrid", redis_url=redis_url, database_url=database_url)
    async with process(shared) as here, Redis.from_url(redis_url, protocol=2) as redis:
        for streams in (True, False):
            here.model.asked.clear()
            here.model.gate = asyncio.Event()
            body = ASKED | {"stream": streams}
            if streams:
                asking: Any = asyncio.ensure_future(all_of(here.events(CHAT, json=body)))
            else:
                asking = asyncio.ensure_future(here.http.post(CHAT, json=body))
            await here.model.asked.wait()
            # Longer than any call of Redis may take.
            await redis.execute_command("CLIENT", "PAUSE", 1500, "ALL")
            here.model.gate.set()
            answer = await asking
            turn = answer[-1].data if streams else answer.json()
            assert (turn["state"], turn["response"]) == ("completed", SAID)
        assert [role for role, _, _ in await here.messages()] == ["user", "assistant"] * 2


@pytest.fixture
async def two_with_short_leases(shared: Settings) -> AsyncGenerator[tuple[Process, Process]]:
    short = msgspec.structs.replace(shared, turn_lease_seconds=2.0)
    async with process(short) as one, process(short) as other:
        yield one, other


async def test_a_reader_of_a_turn_that_lost_its_session_is_told_so(
    two_with_short_leases, monkeypatch
):
    one, other = two_with_short_leases
    headers = {"Idempotency-Key": "k"}
    one.model.word_gate = asyncio.Semaphore(1)

    async def away(*_: Any, **__: Any) -> Any:
        raise HotUnavailable("away")

    monkeypatch.setattr(one.client.use_cases.chat._turns, "renew", away)
    reading = asyncio.ensure_future(all_of(one.events(CHAT, json=ASKED, headers=headers)))
    await one.model.asked.wait()
    other.model.script = [answer_of("quite another one")]

    async def taken_up() -> bool:
        body = ASKED | {"stream": False}
        return (await other.http.post(CHAT, json=body, headers=headers)).status_code == 200

    await eventually(taken_up, within_seconds=8)
    go_on(one)
    events = await reading
    assert (events[-1].name, events[-1].data["state"]) == ("turn.failed", "interrupted")
    said = [content for role, content, _ in await one.messages() if role == "assistant"]
    assert said == ["echo: quite another one"]


async def test_two_attempts_of_a_turn_are_never_mixed(two):
    one, other = two
    headers = {"Idempotency-Key": "k"}
    one.model.word_gate = asyncio.Semaphore(2)
    seen: list[Event] = []
    async with aclosing(one.events(CHAT, json=ASKED, headers=headers)) as events:
        async for event in events:
            seen.append(event)
            if len(seen) == 3:
                break
    await asyncio.sleep(0.2)  # So that readers elsewhere could have been told of it.
    await one.client.use_cases.chat.stop()
    turn_id = seen[0].data["turn_id"]

    other.model.script = [answer_of("quite another one")]
    other.model.word_gate = asyncio.Semaphore(2)
    running = asyncio.ensure_future(all_of(other.events(CHAT, json=ASKED, headers=headers)))
    await other.model.asked.wait()
    sent: list[dict[str, str]] = [
        {},
        {"last-event-id": seen[-1].id},
        {"last-event-id": at(seen[0], "end")},
    ]
    joining = [
        asyncio.ensure_future(all_of(where.joined(turn_id, **each)))
        for where in two
        for each in sent
    ]
    await asyncio.sleep(0.3)  # So that they read while it runs.
    go_on(other)
    turn = (await running)[-1].data
    assert turn["turn_id"] == turn_id
    for each in joining:
        events_ = await each
        assert text_of(events_) == "echo: quite another one"
        assert events_[-1].data == turn


async def test_an_end_that_is_being_stored_is_told_at_a_stop_as_it_stands(here, monkeypatch):
    turns = here.client.use_cases.chat._turns
    finish, storing = turns.finish, asyncio.Event()

    async def slowly(command: Any) -> Any:
        storing.set()
        await asyncio.sleep(0.2)  # Time in which the process is stopped.
        return await finish(command)

    monkeypatch.setattr(turns, "finish", slowly)
    streaming = asyncio.ensure_future(all_of(here.events(CHAT, json=ASKED)))
    await storing.wait()
    await here.client.use_cases.chat.stop()
    events = await streaming
    assert (events[-1].name, events[-1].data["state"]) == ("turn.completed", "completed")
    assert (await here.messages())[1] == ("assistant", SAID, None)
    refused = await here.http.post(CHAT, json=ASKED)
    assert (refused.status_code, refused.json()["code"]) == (503, "draining")


async def test_what_did_not_reach_the_archive_is_not_told_as_if_it_had(hybrid_settings):
    hurried = msgspec.structs.replace(hybrid_settings, archive_wait_seconds=0.3)
    async with process(hurried) as here:
        events = await all_of(here.events(CHAT, json=ASKED | {"durability": "archived"}))
        assert events[-1].name == "turn.failed"
        assert events[-1].data["error"]["code"] == "archive_unavailable"
        assert (await here.messages())[1] == ("assistant", SAID, None)


@pytest.mark.parametrize("path", ["/v1/sessions/s/messages", "/v1/sessions/s"])
async def test_a_turn_followed_elsewhere_ends_when_its_session_is_forgotten(two, path):
    one, other = two
    [started] = await left_after(one, 0)
    joining = asyncio.ensure_future(all_of(other.joined(started.data["turn_id"])))
    await asyncio.sleep(0.3)  # So that it follows.
    assert (await other.http.delete(path)).status_code == 204
    async with asyncio.timeout(3):
        events = await joining
    assert (events[-1].name, events[-1].data["state"]) == ("turn.completed", "cancelled")


async def test_what_was_cleared_away_is_not_shown_by_its_turn(here):
    turn = (await all_of(here.events(CHAT, json=ASKED)))[-1].data
    assert (await here.http.delete("/v1/sessions/s/messages")).status_code == 204
    shown = await here.turn(turn["turn_id"])
    assert (shown["state"], shown["response"], shown["message"]) == ("completed", None, None)
    assert text_of(await all_of(here.joined(turn["turn_id"]))) == ""


async def test_an_erasure_leaves_no_piece_of_an_answer(redis_url, monkeypatch):
    settings = Settings(store="redis", redis_url=redis_url, turn_lease_seconds=2.0)
    async with process(settings) as here, Redis.from_url(redis_url, protocol=2) as redis:

        async def pieces() -> list[Any]:
            return [key async for key in redis.scan_iter("*:pieces:*")]

        await left_after(here, 3, user_id="u")
        await eventually(pieces, within_seconds=2)

        async def dead(*_: Any) -> Finished:
            return Finished(message_id=None, outcome="lost")

        for name in ("finish", "fail"):
            monkeypatch.setattr(here.client.use_cases.chat._turns, name, dead)
        await here.client.use_cases.chat.stop()
        [left] = await pieces()
        async with process(settings) as next_one:
            await left_after(next_one, 3, user_id="u", on_busy="wait")

            async def those_of_the_next() -> bool:
                return await pieces() not in ([], [left])

            await eventually(those_of_the_next, within_seconds=2)
            assert (await next_one.http.delete("/v1/users/u")).status_code == 200
            assert await pieces() == []
            go_on(next_one)


async def test_a_gap_in_what_was_published_is_not_passed_over(redis_url):
    settings = Settings(store="redis", redis_url=redis_url)
    async with process(settings) as one, process(settings) as other:
        seen = await left_after(one, 2)
        await asyncio.sleep(0.2)  # So that its pieces are written.
        async with Redis.from_url(redis_url, protocol=2) as redis:
            [pieces] = [key async for key in redis.scan_iter("*:pieces:*")]
            await redis.delete(pieces)
        joining = asyncio.ensure_future(all_of(other.joined(seen[0].data["turn_id"])))
        await asyncio.sleep(0.2)  # So that it follows.
        assert one.model.word_gate is not None
        one.model.word_gate.release()
        await asyncio.sleep(0.3)  # So that what comes behind the gap is written, and read.
        go_on(one)
        assert text_of(await joining) == SAID
