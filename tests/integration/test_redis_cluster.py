"""Every script's keys are in one slot: shown on a server in cluster mode, which refuses others."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from redis.asyncio import Redis

from service.adapters.redis.retention import RedisRetention
from service.dev.valkey import EmbeddedValkey
from service.domain.context import ContextOptions
from service.domain.ids import HIGHEST_ID, ZERO_ID, TurnId
from service.domain.sessions import SessionDocument
from service.ports import Append, Begin, Create, Cut, Finish, Once, PageQuery
from service.settings import Settings
from tests.support.polling import eventually
from tests.support.processes import free_port
from tests.support.stores import Kept, kept, ref, said


@pytest.fixture
async def cluster_url(tmp_path) -> AsyncGenerator[str]:
    """One node that has all slots: no redirects, but the rules of a cluster."""
    # The nodes' own port would be 10,000 above the clients', which may be beyond the last port.
    settings = {"cluster-enabled": "yes", "cluster-port": str(free_port())}
    server = EmbeddedValkey(tmp_path, settings=settings)
    await server.start()
    async with Redis.from_url(server.url, protocol=2) as client:
        await client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)

        async def is_up() -> bool:
            info: Any = await client.execute_command("CLUSTER INFO")
            return info["cluster_state"] == "ok"

        await eventually(is_up, within_seconds=10)
        with pytest.raises(Exception, match="same slot"):
            await client.eval("return 1", 2, "a", "b")
    yield server.url
    await server.stop()


@pytest.fixture
async def hybrid(cluster_url: str, database_url: str) -> AsyncGenerator[Kept]:
    settings = Settings(redis_url=cluster_url, database_url=database_url, hot_messages_max=5)
    async with kept(settings) as store:
        yield store


async def test_every_script_keeps_to_one_slot(hybrid):
    store = hybrid.store
    once = Once(operation="chat", key="k:{x}", fingerprint="f")
    keyed = Once(operation="append", key="k:{x}", fingerprint="f")
    for name in ("a", "b{c}", "{cm:00}:head", "d:e%"):
        at = ref(name)
        document = SessionDocument(context=ContextOptions(last=3))
        await store.sessions.create(Create(ref=at, user_id="ada", document=document))
        for _ in range(4):
            command = Append(ref=at, bodies=(said("x"), said("y", "system")), once=None)
            await store.transcripts.append(command)
        begin = Begin(
            ref=at,
            turn_id=TurnId(name),
            body=said("hi"),
            user_id="ada",
            once=once,
            lease_token=name,
        )
        await store.turns.begin(begin)
        assert await store.turns.renew(at, name) == "held"
        assert await store.turns.find(at, begin.turn_id, cancel=True) is not None
        assert await store.turns.renew(at, name) == "cancelled"
        finish = Finish(
            ref=at,
            turn_id=begin.turn_id,
            lease_token=name,
            body=said("hello", "assistant"),
            result=b"{}",
            once=once,
        )
        await store.turns.finish(finish)
        assert await store.sessions.replace(at, document, SessionDocument())
        assert (await store.transcripts.append(Append(ref=at, bodies=(said("k"),), once=keyed))).ids
    await hybrid.flush()
    hot = RedisRetention(store.erasure._hot._door, store.erasure._hot._arguments)
    cuts = [Cut(ref=ref(name), through=ZERO_ID) for name in ("a", "b{c}")]
    await hot.cut(cuts)
    assert await hot.end([ref("never{was}")], before=HIGHEST_ID) == 1
    for name in ("a", "b{c}"):
        messages = await store.transcripts.page(ref(name), PageQuery(limit=100))
        assert len(messages) == 11
        await store.transcripts.clear(ref(name))
        await store.sessions.delete(ref(name))
    erasing = asyncio.ensure_future(store.erasure.erase("default", "ada"))
    while not erasing.done():
        await hybrid.flush()
        await asyncio.sleep(0.01)
    erased = await erasing
    # The two that were not deleted, each with the records of a turn, an append and the making.
    assert erased is not None
    assert (erased.hot_sessions, erased.idempotency_records) == (2, 4)
    shards = await store.journal.backlog(range(16))
    assert sum(shard.entries for shard in shards) == 0


async def test_dead_letters_keep_to_one_slot(hybrid):
    desk = hybrid.store.dead_letters
    assert desk is not None
    for name in ("a", "b{c}", "{cm:00}:head:", "d:dead:e%"):
        command = Append(ref=ref(name), bodies=(said("x"), b"not ours", b"nor this", said("y")))
        ids = (await hybrid.store.transcripts.append(command)).ids
        await hybrid.flush()
        assert [letter.id async for letter in desk.walk()] == list(ids[1:3])
        assert await desk.retry(ids[1], by="test") == "undecodable"
        await desk.drop(ids[1], by="test")
        assert [letter.id async for letter in desk.walk()] == [ids[2]]
        await hybrid.store.sessions.delete(ref(name))
        assert [letter.id async for letter in desk.walk()] == []
        await hybrid.flush()
