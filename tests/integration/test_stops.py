"""Running turns that are told to end: at once, by whichever process, and at no cost till then."""

import asyncio
import contextlib
import functools
import os
import re
import signal
import time
from collections.abc import AsyncGenerator
from typing import Any

import asyncpg
import httpx
import msgspec
import pytest
from redis.asyncio import Redis

from service.core.stops import TurnStops
from service.dev.valkey import EmbeddedValkey
from service.domain.observations import ComponentFailed, PoolWaited
from service.settings import Settings
from tests.support.api import Client, api_client
from tests.support.polling import eventually
from tests.support.scripted_model import ScriptedModel

CHAT = "/v1/sessions/s/chat"
ASKED = {"message": "hi", "user_id": "ada"}
SPENDING_SECONDS = 1.0
"""How long the model of a turn may go on that is to end."""


class Process(msgspec.Struct):
    """An API of its own over the stores that another one uses too."""

    client: Client
    model: ScriptedModel

    @property
    def http(self) -> httpx.AsyncClient:
        return self.client.http

    @property
    def stops(self) -> TurnStops:
        stops = self.client.use_cases.chat._turns.stops
        assert isinstance(stops, TurnStops)
        return stops

    async def until_listening(self) -> None:
        await eventually(lambda: self.stops.listening, within_seconds=5)


@contextlib.asynccontextmanager
async def process(settings: Settings) -> AsyncGenerator[Process]:
    model = ScriptedModel()
    async with api_client(model, settings, turn_deadline_seconds=60) as client:
        yield Process(client, model)


@pytest.fixture(params=["postgres", "redis", "hybrid"])
def settings(request: pytest.FixtureRequest) -> Settings:
    """The lease is as long as it is by default: its renewal alone would be heard too late."""
    of_postgres, of_redis = request.param != "redis", request.param != "postgres"
    return Settings(
        store=request.param,
        database_url=request.getfixturevalue("database_url") if of_postgres else None,
        redis_url=request.getfixturevalue("redis_url") if of_redis else None,
        archive_wait_seconds=0.5,
    )


@pytest.fixture
async def two(settings: Settings) -> AsyncGenerator[tuple[Process, Process]]:
    async with process(settings) as one, process(settings) as other:
        if settings.store != "postgres":
            await one.until_listening()
        yield one, other


@pytest.fixture
async def redis(redis_url: str) -> AsyncGenerator[Redis]:
    async with Redis.from_url(redis_url, protocol=2) as client:
        yield client


async def asked(here: Process, *, streams: bool = False) -> asyncio.Task[httpx.Response]:
    """A turn whose model thinks until somebody ends it."""
    here.model.asked.clear()
    here.model.ended.clear()
    here.model.gate = asyncio.Event()
    call = asyncio.create_task(here.http.post(CHAT, json=ASKED | {"stream": streams}))
    await here.model.asked.wait()
    return call


def go_on(here: Process) -> None:
    assert here.model.gate is not None
    here.model.gate.set()


async def cancel(elsewhere: Process) -> None:
    items = (await elsewhere.http.get("/v1/sessions/s/messages")).json()["items"]
    path = f"/v1/sessions/s/turns/{items[-1]['turn_id']}/cancel"
    assert (await elsewhere.http.post(path)).status_code == 200


async def forget(elsewhere: Process, path: str) -> None:
    # 503: an erasure waits for the archive, where no flusher is; what is asked here came before.
    assert (await elsewhere.http.delete(path)).status_code in {200, 204, 503}


WAYS = {
    "cancel": cancel,
    "clear": functools.partial(forget, path="/v1/sessions/s/messages"),
    "delete": functools.partial(forget, path="/v1/sessions/s"),
    "erase": functools.partial(forget, path="/v1/users/ada"),
}


async def ends_in_time(here: Process, call: asyncio.Task[httpx.Response], stop: Any) -> None:
    started = time.monotonic()
    stopping = asyncio.ensure_future(stop)
    async with asyncio.timeout(10):
        await here.model.ended.wait()
    assert time.monotonic() - started < SPENDING_SECONDS
    await asyncio.wait([call, stopping], timeout=20)
    await stopping
    body = (await call).text
    assert '"state":"cancelled"' in body, body


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("way", WAYS)
async def test_a_turn_ends_within_a_second_of_the_wish_of_another_process(two, way, streams):
    one, other = two
    call = await asked(one, streams=streams)
    await ends_in_time(one, call, WAYS[way](other))


async def test_a_warm_turn_whose_model_takes_its_time_is_two_round_trips_and_no_sql(
    hybrid_settings, redis, database_url
):
    """By the servers' own statistics."""
    archive = await asyncpg.connect(database_url)
    async with process(hybrid_settings) as here:
        await here.until_listening()
        # Scripts that the server does not know yet are two calls.
        assert (await here.http.post(CHAT, json=ASKED)).status_code == 200
        sql, before = await statements(archive), await scripts(redis)
        here.client.recorder.seen.clear()

        here.model.seconds = 2.0
        answer = await here.http.post(CHAT, json=ASKED)
        assert answer.json()["response"] == "echo: hi"
        assert await scripts(redis) - before == 2
        assert await statements(archive) == sql
        assert here.client.recorder.of(PoolWaited) == []
    await archive.close()


async def scripts(redis: Redis) -> int:
    stats = await redis.info("commandstats")
    return sum(stats[name]["calls"] for name in stats if name.startswith("cmdstat_eval"))


async def statements(archive: asyncpg.Connection) -> set[tuple[int, Any]]:
    """When each other connection to the database last began or ended anything."""
    rows = await archive.fetch(
        "SELECT pid, state_change FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        " AND backend_type = 'client backend'"
    )
    return {(row["pid"], row["state_change"]) for row in rows}


@pytest.mark.parametrize("heard_again", [True, False])
async def test_a_stop_is_heard_although_the_subscription_was_lost(
    hybrid_settings, redis, heard_again
):
    async with process(hybrid_settings) as one, process(hybrid_settings) as other:
        await one.until_listening()
        call = await asked(one)
        assert await redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub") >= 1
        if heard_again:
            await eventually(lambda: not one.stops.listening, within_seconds=5)
            await one.until_listening()
        await ends_in_time(one, call, cancel(other))
        lost = one.client.recorder.of(ComponentFailed)
        assert [what.component for what in lost] == ["turn-stops"]


async def test_a_stop_that_nobody_could_publish_is_heard_when_the_subscription_is_back(
    hybrid_settings, redis
):
    """A subscription that was lost while a turn ran has it look, at the loss and at its return."""
    async with process(hybrid_settings) as one:
        await one.until_listening()
        call = await asked(one)
        [head] = [key async for key in redis.scan_iter("*:head:*")]
        # As if the message had gone to the connection that is lost.
        await redis.hset(head, "stop", await redis.hget(head, "lease"))
        await redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        async with asyncio.timeout(SPENDING_SECONDS):
            await one.model.ended.wait()
        assert (await call).json()["state"] == "cancelled"


async def test_stops_are_heard_again_after_a_restart_of_redis(tmp_path, database_url):
    server = EmbeddedValkey(tmp_path)
    await server.start()
    settings = Settings(store="hybrid", redis_url=server.url, database_url=database_url)
    async with process(settings) as one, process(settings) as other:
        await one.until_listening()
        call = await asked(one)
        await server.stop()
        await eventually(lambda: not one.stops.listening, within_seconds=5)
        await server.start()
        await one.until_listening()
        await ends_in_time(one, call, cancel(other))
    await server.stop()


async def test_a_subscription_whose_server_says_nothing_is_taken_for_lost(
    tmp_path, database_url, monkeypatch
):
    """As with a connection that was cut: no end of it is ever told."""
    monkeypatch.setattr("service.adapters.redis.stops.QUIET_SECONDS", 0.3)
    server = EmbeddedValkey(tmp_path)
    await server.start()
    settings = Settings(store="hybrid", redis_url=server.url, database_url=database_url)
    async with process(settings) as one:
        await one.until_listening()
        before = await pings(server.url)

        async def asked_twice() -> bool:
            return await pings(server.url) >= before + 2

        # It answers: that is no loss.
        await eventually(asked_twice, within_seconds=10)
        assert one.client.recorder.of(ComponentFailed) == []
        assert server.pid is not None
        os.kill(server.pid, signal.SIGSTOP)
        await eventually(lambda: not one.stops.listening, within_seconds=5)
        os.kill(server.pid, signal.SIGCONT)
        await one.until_listening()
    await server.stop()


async def pings(url: str) -> int:
    async with Redis.from_url(url, protocol=2) as client:
        stats = await client.info("commandstats")
        return stats.get("cmdstat_ping", {}).get("calls", 0)


@pytest.mark.parametrize("granted", [True, False])
async def test_without_a_right_to_channels_turns_end_all_the_same(hybrid_settings, redis, granted):
    """An ACL of before this version grants none: stops are looked for then, and nothing fails."""
    channels = "&cm:stops:*" if granted else "resetchannels"
    user = ("ACL", "SETUSER", "limited", "reset", "on", ">pw", "~{cm*", "+@all")
    await redis.execute_command(*user, channels)
    url = hybrid_settings.redis_url.replace("redis://", "redis://limited:pw@")
    limited = msgspec.structs.replace(hybrid_settings, redis_url=url, archive_wait_seconds=0.5)
    try:
        async with process(limited) as one, process(limited) as other:
            if granted:
                await one.until_listening()
            for stop in WAYS.values():
                call = await asked(one)
                await ends_in_time(one, call, stop(other))
            assert one.stops.listening == granted
            noted = one.client.recorder.of(ComponentFailed)
            assert len(noted) == (0 if granted else 1)
    finally:
        await redis.execute_command("ACL", "DELUSER", "limited")


async def test_who_may_listen_and_not_publish_hears_nothing_and_says_so(hybrid_settings, redis):
    await redis.execute_command(
        *("ACL", "SETUSER", "mute", "reset", "on", ">pw", "~{cm*", "&*", "+@all", "-publish")
    )
    try:
        url = hybrid_settings.redis_url.replace("redis://", "redis://mute:pw@")
        limited = msgspec.structs.replace(hybrid_settings, store="redis", redis_url=url)
        async with process(limited) as one, process(limited) as other:
            await eventually(
                lambda: bool(one.client.recorder.of(ComponentFailed)), within_seconds=5
            )
            assert not one.stops.listening
            one.model.gate = asyncio.Event()
            asking = asyncio.ensure_future(one.http.post(CHAT, json=ASKED))
            await one.model.asked.wait()
            began = time.monotonic()
            await other.http.delete("/v1/sessions/s/messages")
            assert (await asking).json()["state"] == "cancelled"
            assert time.monotonic() - began < SPENDING_SECONDS
    finally:
        await redis.execute_command("ACL", "DELUSER", "mute")


@pytest.mark.parametrize("lost", [False, True])
async def test_a_stop_beside_the_begin_of_its_turn_is_heard(two, redis, monkeypatch, lost):
    one, other = two
    turns, begun, goes_on = one.client.use_cases.chat._turns, asyncio.Event(), asyncio.Event()
    begin = turns.begin

    async def slow(command: Any) -> Any:
        done = await begin(command)
        begun.set()
        await goes_on.wait()
        return done

    monkeypatch.setattr(turns, "begin", slow)
    one.model.gate = asyncio.Event()
    asking = asyncio.ensure_future(one.http.post(CHAT, json=ASKED))
    await begun.wait()
    heard = one.stops.changes
    if lost:
        await redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    assert (await other.http.delete("/v1/sessions/s/messages")).status_code == 204
    if lost and heard:
        # Lost, and had again, while nobody followed the turn.
        async def had_again() -> bool:
            return one.stops.changes == heard + 2

        await eventually(had_again, within_seconds=5)
    told = time.monotonic()
    goes_on.set()
    assert (await asking).json()["state"] == "cancelled"
    assert time.monotonic() - told < SPENDING_SECONDS


async def test_each_process_hears_of_its_own_turns_alone(hybrid_settings, redis):
    async with process(hybrid_settings) as one, process(hybrid_settings) as other:
        await one.until_listening()
        await other.until_listening()
        assert len(await redis.pubsub_channels("cm:stops:*")) == 2
        call = await asked(one)
        [head] = [key async for key in redis.scan_iter("*:head:*")]
        [token, own] = await redis.hmget(head, "lease", "listener")
        assert await redis.pubsub_numsub(own) == [(own, 1)]
        async with redis.pubsub() as listening:
            await listening.psubscribe("*")
            await listening.get_message(timeout=5)
            await ends_in_time(one, call, cancel(other))
            message = await listening.get_message(timeout=5)
    # Both are random and name nobody.
    assert message is not None
    assert (message["channel"], message["data"]) == (own, token)
    assert re.fullmatch(rb"cm:stops:[0-9a-f]{32} [0-9a-f]{32}", own + b" " + token)


async def test_nothing_is_left_of_a_subscription_when_its_process_has_stopped(
    hybrid_settings, redis
):
    before = {task.get_name() for task in asyncio.all_tasks()}
    async with process(hybrid_settings) as here:
        await here.until_listening()
        assert len(await redis.client_list(_type="pubsub")) == 1
        call = await asked(here)
        assert len(here.stops._looks) == 1
        go_on(here)
        assert (await call).status_code == 200
        assert here.stops._looks == {}
    await eventually(lambda: no_clients(redis), within_seconds=5)
    assert {task.get_name() for task in asyncio.all_tasks()} - before == set()


async def no_clients(redis: Redis) -> bool:
    return await redis.client_list(_type="pubsub") == []
