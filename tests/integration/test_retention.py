"""What is older than it is kept for goes, in both tiers, and nothing else does."""

import asyncio
import time

import asyncpg
import msgspec
import pytest
from redis.asyncio import Redis

from service.__main__ import main
from service.adapters.postgres.door import ArchiveLimits, PostgresDoor
from service.adapters.postgres.keys import session_key
from service.adapters.postgres.retention import PostgresRetention
from service.adapters.redis.client import HotLimits, RedisDoor
from service.adapters.redis.retention import RedisRetention
from service.bootstrap.connections import session_arguments
from service.bootstrap.retention import run_retention
from service.core import retaining
from service.core.retaining import Retaining
from service.domain.context import ContextOptions, Need
from service.domain.errors import HotUnavailable, SessionNotFound
from service.domain.ids import HIGHEST_ID, ZERO_ID, TurnId, message_id, next_id
from service.domain.messages import Role
from service.domain.sessions import SessionDocument
from service.domain.summaries import Summary
from service.ports import Append, Begin, Begun, Create, PageQuery
from service.settings import Settings
from tests.support.stores import Recorder, kept, ref, said

DAY = 24 * 3600 * 1000


@pytest.fixture(params=["hybrid", "postgres"])
async def memory(request, database_url, redis_url):
    settings = Settings(
        store=request.param, database_url=database_url, redis_url=redis_url, hot_messages_max=20
    )
    async with kept(settings) as store:
        yield store


@pytest.fixture
async def hybrid(hybrid_settings):
    async with kept(msgspec.structs.replace(hybrid_settings, hot_messages_max=20)) as store:
        yield store


@pytest.fixture
async def retention(database_url, redis_url, hybrid_settings):
    """Retaining over the stores of the test, as the command opens it."""
    door = PostgresDoor(database_url, ArchiveLimits(), name="test", observer=Recorder())
    redis = RedisDoor(redis_url, HotLimits())
    hot = RedisRetention(redis, session_arguments(hybrid_settings, archived=True))

    def make(memory, stopped=lambda: False) -> Retaining:
        return Retaining(
            PostgresRetention(door), hot if memory.name == "hybrid" else None, stopped=stopped
        )

    yield make
    await door.close()
    await redis.close()


@pytest.fixture
async def sql(database_url):
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


async def append(memory, session, *contents, role: Role = "user", user: str | None = "ada"):
    command = Append(
        ref=ref(session), bodies=tuple(said(content, role) for content in contents), user_id=user
    )
    ids = (await memory.store.transcripts.append(command)).ids
    await asyncio.sleep(0.002)  # So that the next id is of another millisecond.
    return ids


async def contents(memory, session="s"):
    page = await memory.store.transcripts.page(ref(session), PageQuery(limit=1000))
    return [message.content for message in page]


async def test_the_limit_is_exact_in_the_archive_and_in_the_hot_copy(memory, retention):
    await append(memory, "s", *(str(n) for n in range(30)))
    await append(memory, "s", "rule", role="system")
    ids = await append(memory, "s", "31", "32", "33")
    await append(memory, "t", "young")
    await memory.flush()
    recent = await memory.store.transcripts.recent(ref("s"), Need(last=5))
    assert [message.content for message in recent.pinned] == []

    done = await retention(memory).run(ids[1])
    assert (done.messages, done.sessions_ended, done.complete) == (32, 0, True)
    assert await contents(memory) == ["32", "33"]
    session = await memory.store.sessions.get(ref("s"))
    assert (session.message_count, session.last_id, session.archived_through) == (
        2,
        ids[2],
        ids[2],
    )
    recent = await memory.store.transcripts.recent(ref("s"), Need(last=5))
    assert [message.content for message in recent.messages] == ["32", "33"]
    assert recent.pinned == ()
    assert await contents(memory, "t") == ["young"]

    assert (await retention(memory).run(ids[1])).messages == 0
    await append(memory, "s", "34")
    await memory.flush()
    assert await contents(memory) == ["32", "33", "34"]
    assert (await memory.store.sessions.get(ref("s"))).message_count == 3


async def test_a_session_in_which_nothing_is_left_ends(memory, retention, sql):
    document = SessionDocument(metadata={"a": 1})
    await memory.store.sessions.create(Create(ref=ref("empty"), user_id="ada", document=document))
    await append(memory, "s", "a", "b")
    await append(memory, "t", "c")
    await memory.flush()

    done = await retention(memory).run(HIGHEST_ID)
    await memory.flush()
    assert (done.messages, done.sessions_ended) == (3, 3)
    for name in ("empty", "s", "t"):
        with pytest.raises(SessionNotFound):
            await memory.store.sessions.get(ref(name))
    rows = await sql.fetch("SELECT session_id, user_id, document, deleted FROM sessions")
    assert {tuple(row) for row in rows} == {("", None, None, True)}
    assert await sql.fetchval("SELECT count(*) FROM messages") == 0

    again = await retention(memory).run(HIGHEST_ID)
    assert (again.messages, again.sessions_ended, again.complete) == (0, 0, True)
    await append(memory, "s", "new")
    await memory.flush()
    assert await contents(memory) == ["new"]


async def test_a_session_that_is_in_use_does_not_end(memory, retention):
    document = SessionDocument(metadata={"a": 1})
    await memory.store.sessions.create(Create(ref=ref("s"), user_id="ada", document=document))
    await append(memory, "s", "old")
    await memory.flush()
    await append(memory, "s", "unflushed")
    before = next_id((await append(memory, "other", "x"))[0], 0)
    if memory.name == "postgres":
        before = (await memory.store.sessions.get(ref("s"))).last_id

    await retention(memory).run(before)
    await memory.flush()
    session = await memory.store.sessions.get(ref("s"))
    assert (session.user_id, session.document) == ("ada", document)
    assert await contents(memory) == ["unflushed"]


async def test_unflushed_messages_stay_whatever_their_age(hybrid, retention):
    await append(hybrid, "s", "a")
    await hybrid.flush()
    await append(hybrid, "s", "b", "c")

    done = await retention(hybrid).run(HIGHEST_ID)
    assert (done.messages, done.sessions_ended) == (1, 0)
    assert await contents(hybrid) == ["b", "c"]
    await hybrid.flush()
    assert await contents(hybrid) == ["b", "c"]


async def test_what_a_dead_flusher_did_not_acknowledge_stays_hot(hybrid, retention, redis_url):
    ids = await append(hybrid, "s", *(str(n) for n in range(10)))
    async with Redis.from_url(redis_url, protocol=2) as redis:
        # It died after its commit: Redis is as it was before.
        dumped = [(key, await redis.dump(key)) async for key in redis.scan_iter("{cm:*}:*")]
        await hybrid.flush()
        for key, value in dumped:
            assert value is not None
            await redis.restore(key, 0, value, replace=True)

        assert (await retention(hybrid).run(ids[5])).messages == 5
        [head] = [key async for key in redis.scan_iter("{cm:*}:head:*")]
        assert await redis.hmget(head, ["held", "unflushed"]) == [b"10", b"10"]
    await append(hybrid, "s", "10")
    await hybrid.flush()
    assert (await hybrid.store.transcripts.recent(ref("s"), Need(last=1))).messages[0].content == (
        "10"
    )


async def test_no_replay_and_no_filling_brings_it_back(hybrid, retention, redis_url, sql):
    ids = await append(hybrid, "s", *(str(n) for n in range(40)))
    # As a flusher that died after its commit: the journal has all of it still.
    async with Redis.from_url(redis_url, protocol=2) as redis:
        journals = [key async for key in redis.scan_iter("{cm:*}:journal")]
        dumped = {key: await redis.dump(key) or b"" for key in journals}
        await hybrid.flush()
        await retention(hybrid).run(ids[30])
        for key, value in dumped.items():
            assert value is not None
            await redis.restore(key, 0, value, replace=True)
        await hybrid.flush()
    assert await contents(hybrid) == [str(n) for n in range(30, 40)]
    assert await sql.fetchval("SELECT count(*) FROM messages") == 10
    assert (await hybrid.store.sessions.get(ref("s"))).message_count == 10

    async with Redis.from_url(redis_url, protocol=2) as redis:
        await redis.flushdb()
    recent = await hybrid.store.transcripts.recent(ref("s"), Need(last=100))
    assert len(recent.messages) == 10


async def test_a_summary_goes_when_all_that_it_says_is_gone(memory, retention):
    ids = await append(memory, "s", *(str(n) for n in range(6)))
    summary = Summary(text="so far", from_id=ids[0], through_id=ids[2], model="m")
    assert await memory.store.sessions.summarise(ref("s"), None, summary)
    await memory.flush()

    await retention(memory).run(ids[2])
    recent = await memory.store.transcripts.recent(ref("s"), Need(last=10))
    assert recent.summary == summary
    await retention(memory).run(ids[3])
    recent = await memory.store.transcripts.recent(ref("s"), Need(last=10))
    assert recent.summary is None
    assert [message.content for message in recent.messages] == ["3", "4", "5"]


async def test_batches_are_bounded_and_a_stopped_run_goes_on(memory, retention, monkeypatch):
    monkeypatch.setattr(retaining, "ROWS_MAX", 10)
    for n in range(9):
        await append(memory, f"s{n}", *(str(m) for m in range(5)))
    await memory.flush()
    looks = iter([False] * 5)

    done = await retention(memory, lambda: next(looks, True)).run(HIGHEST_ID)
    assert not done.complete
    assert 0 < done.messages < 45
    rest = await retention(memory).run(HIGHEST_ID)
    assert rest.messages == 45 - done.messages
    assert rest.complete


async def test_all_tenants_are_cleaned(memory, retention):
    for tenant in ("a", "b", "c:d"):
        command = Append(ref=ref("s", tenant), bodies=(said("x"),))
        await memory.store.transcripts.append(command)
    await memory.flush()
    done = await retention(memory).run(HIGHEST_ID)
    assert (done.tenants, done.messages, done.sessions_ended) == (3, 3, 3)


async def test_the_hot_copy_keeps_its_lifetime_and_its_shape(hybrid, retention, redis_url):
    ids = await append(hybrid, "s", *(str(n) for n in range(50)))
    await hybrid.flush()
    async with Redis.from_url(redis_url, protocol=2) as redis:
        [head] = [key async for key in redis.scan_iter("{cm:*}:head:*")]
        await redis.pexpire(head, 100_000)
        await retention(hybrid).run(ids[45])
        assert 90_000 < await redis.pttl(head) <= 100_000
        fields = await redis.hgetall(head)
        assert fields[b"held"] == b"5"
        assert fields[b"floor"] == ZERO_ID.encode()
        assert await redis.llen(head.replace(b":head:", b":tail:")) == 5


async def test_the_command_goes_by_the_days_of_the_setting(memory, database_url, redis_url, sql):
    await append(memory, "s", "young")
    await memory.flush()
    now = time.time_ns() // 1_000_000
    for days in (29, 31):
        await sql.execute(
            "INSERT INTO messages (session_key, id, tenant, role, body)"
            ' VALUES ($1, $2, \'default\', \'user\', \'{"role":"user","content":"old"}\')',
            session_key(ref("s")),
            message_id(now - days * DAY, 0, 0),
        )
    await sql.execute("UPDATE sessions SET message_count = 3")
    settings = Settings(
        store=memory.name, database_url=database_url, redis_url=redis_url, retention_days=30
    )
    done = await run_retention(settings, asyncio.Event())
    assert (done.messages, done.sessions_ended) == (1, 0)
    assert await sql.fetchval("SELECT count(*) FROM messages") == 2

    for_ever = msgspec.structs.replace(settings, retention_days=0)
    assert (await run_retention(for_ever, asyncio.Event())).messages == 0


async def test_expired_calls_are_swept(memory, database_url, redis_url, sql):
    await sql.execute(
        "INSERT INTO calls"
        " (session_key, operation, key, tenant, fingerprint, state, ids, expires_at)"
        " SELECT gen_random_uuid(), 'op', n::text, 't', '-', 'done', '{}', now() - interval '1 s'"
        " FROM generate_series(1, 1200) AS n"
    )
    settings = Settings(store=memory.name, database_url=database_url, redis_url=redis_url)
    await run_retention(settings, asyncio.Event())
    assert await sql.fetchval("SELECT count(*) FROM calls WHERE tenant = 't'") == 0


async def test_without_redis_nothing_is_deleted(hybrid, database_url, sql, hybrid_settings):
    await append(hybrid, "s", "a")
    await hybrid.flush()
    await sql.execute("UPDATE messages SET id = $1", message_id(1, 0, 0))
    settings = msgspec.structs.replace(
        hybrid_settings, redis_url="redis://127.0.0.1:1/0", retention_days=1
    )
    with pytest.raises(HotUnavailable):
        await run_retention(settings, asyncio.Event())
    assert await sql.fetchval("SELECT count(*) FROM messages") == 1


def test_the_command_refuses_a_store_without_an_archive(monkeypatch, capsys):
    monkeypatch.setenv("STORE", "redis")
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    assert main(["retain"]) == 2
    assert "STORE" in capsys.readouterr().err


def test_the_command_fails_where_redis_is_away(monkeypatch, capsys):
    monkeypatch.setenv("STORE", "hybrid")
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    monkeypatch.setenv("RETENTION_DAYS", "1")
    assert main(["retain"]) == 1
    assert capsys.readouterr().err.startswith("chat-memory: ")


async def test_instructions_outlive_what_was_said_before_them(memory, retention):
    """Though the hot copy, which is appended to alone, does not know them apart."""
    old = await append(memory, "s", "old", "old", user=None)
    await append(memory, "s", "RULE", role="system", user=None)
    await append(memory, "s", *(f"u{n}" for n in range(10)), user=None)
    await memory.flush()
    await memory.store.sessions.get(ref("s"))
    await retention(memory).run(old[1])
    recent = await memory.store.transcripts.recent(ref("s"), Need(last=5))
    shown = [message.content for message in (*recent.pinned, *recent.messages)]
    assert shown == ["RULE", *(f"u{n}" for n in range(5, 10))]
    command = Begin(
        ref=ref("s"),
        turn_id=TurnId("t"),
        body=said("new"),
        options=ContextOptions(last=5),
        user_id=None,
        once=None,
        lease_token="t",
    )
    begun = await memory.store.turns.begin(command)
    assert isinstance(begun, Begun)
    history = begun.history
    assert [message.content for message in (*history.pinned, *history.messages)] == shown
