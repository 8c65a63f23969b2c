"""After an erasure no byte of the user is left in either store, and nothing brings one back."""

import asyncio
import contextlib
from contextlib import asynccontextmanager
from datetime import date
from typing import Any

import asyncpg
import msgspec
import pytest
from redis.asyncio import Redis

from service.adapters.postgres.counters import COUNT
from service.adapters.postgres.door import ArchiveLimits, PostgresDoor
from service.adapters.postgres.erasing import PostgresArchiveErasure
from service.bootstrap.ambient import SystemClock
from service.core.erasing import Erasing
from service.core.profiles import UserProfiles
from service.domain.errors import ArchiveUnavailable, ChatMemoryError, SessionNotFound, UserNotFound
from service.domain.ids import TurnId
from service.domain.sessions import SessionDocument
from service.domain.summaries import Summary
from service.ports import Append, Begin, Create, Erased, Finish, Once, PageQuery
from service.settings import Settings
from tests.support.polling import eventually
from tests.support.stores import Recorder, kept, ref, said
from tests.support.traces import in_postgres, in_redis

ADA = "ada@example.org"
SECRET = "s3cret-text"
"""In everything that the user says or is told; the sessions' ids begin with the user's."""


@pytest.fixture
async def hybrid(hybrid_settings):
    async with kept(hybrid_settings) as store:
        yield store


@pytest.fixture
async def redis(redis_url):
    async with Redis.from_url(redis_url, protocol=2) as client:
        yield client


@pytest.fixture
async def sql(database_url):
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


@asynccontextmanager
async def flushing(memory, *, without: str | None = None):
    """The flusher runs beside, as in production; not before a session is gone, if so asked."""

    async def is_gone() -> bool:
        try:
            await memory.store.sessions.get(ref(without or ""))
        except SessionNotFound:
            return True
        return False

    async def flush() -> None:
        if without:
            await eventually(is_gone, within_seconds=5)
        while True:
            await memory.flush()
            await asyncio.sleep(0.01)

    task = asyncio.create_task(flush())
    yield
    task.cancel()
    await asyncio.wait([task])


def erasing(memory) -> Erasing:
    clock = SystemClock()
    profiles = UserProfiles(memory.store.profiles, bytes_max=1000, clock=clock)
    return Erasing(memory.store.erasure, profiles.forget, clock)


async def erase(memory, user=ADA):
    return (await erasing(memory).erase("default", user)).erased


def once(key, operation="append"):
    return Once(operation=operation, key=key, fingerprint="f")


async def append(memory, session, *, promise=None, user: str | None = ADA, text=SECRET):
    command = Append(ref=ref(session), bodies=(said(text),), user_id=user, once=promise)
    return await memory.store.transcripts.append(command)


async def chat(memory, session, *, promise=None, finishes=True, token="t"):
    begin = Begin(
        ref=ref(session),
        turn_id=TurnId("turn"),
        body=said(SECRET),
        user_id=ADA,
        once=promise,
        lease_token=token,
    )
    await memory.store.turns.begin(begin)
    if finishes:
        await end(memory, session, promise=promise, token=token)


async def end(memory, session, *, promise=None, token="t"):
    finish = Finish(
        ref=ref(session),
        turn_id=TurnId("turn"),
        lease_token=token,
        body=said(f"you said {SECRET}", "assistant"),
        result=f'"{SECRET}"'.encode(),
        once=promise,
    )
    return await memory.store.turns.finish(finish)


async def live(memory, stage: str) -> None:
    """All that a user can do, in sessions named after the user and the stage."""
    store = memory.store
    for deleted in ("", "-deleted"):
        name = f"{ADA}-{stage}{deleted}"
        document = SessionDocument(metadata={"name": SECRET})
        command = Create(ref=ref(name), user_id=ADA, document=document, once=once("made", "create"))
        await store.sessions.create(command)
        ids = (await append(memory, name, promise=once("said"))).ids
        await append(memory, name)
        await chat(memory, name, promise=once("asked", "chat"), token="t1")
        await chat(memory, name, token="t2")
        summary = Summary(text=SECRET, from_id=ids[0], through_id=ids[0], model="m")
        assert await store.sessions.summarise(ref(name), None, summary)
        await chat(memory, name, promise=once("running", "chat"), finishes=False, token="t3")
        if deleted:
            await store.sessions.delete(ref(name))
    await append(memory, f"{ADA}-cleared-{stage}")
    await store.transcripts.clear(ref(f"{ADA}-cleared-{stage}"))


async def assert_nothing_of(user, redis, sql) -> None:
    for where in ([await in_redis(redis)] if redis else []) + [await in_postgres(sql)]:
        for trace in (user.encode(), SECRET.encode()):
            place = where.find(trace)
            assert place < 0, where[max(0, place - 200) : place + 200]


async def count_for(sql, user) -> None:
    """As the archive's writer counts."""
    for day in ("2026-01-01", "2026-01-02"):
        await sql.execute(
            "INSERT INTO daily_counts (tenant, day, user_id, model, slot, messages, turns)"
            " VALUES ('default', $1::text::date, $2, 'm', 0, 5, 2)",
            day,
            user,
        )
        await sql.execute(
            "INSERT INTO active_sessions (tenant, day, user_id, model, session_key)"
            " VALUES ('default', $1::text::date, $2, 'm',"
            " '00000000-0000-0000-0000-000000000001')",
            day,
            user,
        )


async def keep_profile(sql, user) -> None:
    await sql.execute(
        "INSERT INTO profiles (tenant, user_id, version, document, updated_at)"
        " VALUES ('default', $1, gen_random_uuid(), $2, now())",
        user,
        f'{{"likes": [{{"fact": "{SECRET}"}}]}}',
    )


@pytest.mark.parametrize("cold", [False, True])
async def test_no_byte_of_an_erased_user_is_left(hybrid, redis, sql, cold):
    await live(hybrid, "archived")
    await hybrid.flush()
    if cold:
        await redis.flushdb()
        await append(hybrid, f"{ADA}-archived", user=None)
    await live(hybrid, "unflushed")
    await count_for(sql, ADA)
    await count_for(sql, "")
    await keep_profile(sql, ADA)
    await append(hybrid, "eve's", user="eve", promise=once("k"), text="hello")

    async with flushing(hybrid, without=f"{ADA}-unflushed"):
        erased = await erase(hybrid)
    await assert_nothing_of(ADA, redis, sql)
    assert erased.hot_sessions == (3 if cold else 4)
    # What the deleted sessions had is nobody's by now. The others: seven messages in the archive,
    # and beside it nine events of a session and two of a cleared one; the cold append is in either,
    # or in both where a flusher had committed it and not yet said so.
    assert erased.archive_sessions == 2
    assert erased.archive_messages in {7, 7 + cold}
    assert erased.archive_messages + erased.journal_entries in {18 + cold, 18 + 2 * cold}
    assert erased.profiles == 1
    assert erased.idempotency_records >= 4
    assert len(await hybrid.store.transcripts.page(ref("eve's"), PageQuery(limit=9))) == 1
    assert (await append(hybrid, "eve's", user="eve", promise=once("k"), text="hello")).replayed
    counts = await sql.fetch(
        "SELECT user_id, messages, turns FROM daily_counts WHERE turns = 4 ORDER BY day"
    )
    assert [tuple(row) for row in counts] == [("", 10, 4), ("", 10, 4)]
    folded = "SELECT count(*) FROM active_sessions WHERE user_id = '' AND model = 'm'"
    assert await sql.fetchval(folded) == 2

    async with flushing(hybrid):
        with pytest.raises(UserNotFound):
            await erase(hybrid)
    finished = await end(hybrid, f"{ADA}-unflushed", promise=once("running", "chat"), token="t3")
    assert finished.outcome == "cancelled"
    assert await hybrid.store.turns.renew(ref(f"{ADA}-unflushed"), "t3") == "lost"
    await hybrid.flush()
    await assert_nothing_of(ADA, redis, sql)


async def test_no_byte_is_left_where_postgresql_holds_everything(database_url, sql):
    async with kept(Settings(store="postgres", database_url=database_url)) as memory:
        await live(memory, "all")
        await count_for(sql, ADA)
        await keep_profile(sql, ADA)
        erased = await erase(memory)
        await assert_nothing_of(ADA, None, sql)
        assert (erased.archive_sessions, erased.archive_messages, erased.profiles) == (2, 7, 1)
        finished = await end(memory, f"{ADA}-all", promise=once("running", "chat"), token="t3")
        assert finished.outcome == "cancelled"
        await assert_nothing_of(ADA, None, sql)


async def test_no_byte_is_left_where_redis_holds_everything(redis_url, redis):
    async with kept(Settings(store="redis", redis_url=redis_url)) as memory:
        await live(memory, "all")
        erased = await erase(memory)
        assert erased.hot_sessions == 2
        for trace in (ADA.encode(), SECRET.encode()):
            assert trace not in await in_redis(redis)


async def test_a_replay_brings_nothing_back(hybrid, redis, sql):
    await live(hybrid, "s")
    journals = [key async for key in redis.scan_iter("{cm:*}:journal")]
    before = {key: await redis.dump(key) for key in journals}
    await hybrid.flush()
    async with flushing(hybrid):
        await erase(hybrid)

    # As a flusher that died between its commit and the trimming of the journal.
    for key, value in before.items():
        await redis.restore(key, 0, value, replace=True)
    await hybrid.flush()
    await assert_nothing_of(ADA, redis, sql)
    for name in (f"{ADA}-s", f"{ADA}-s-deleted", f"{ADA}-cleared-s"):
        with pytest.raises(SessionNotFound):
            await hybrid.store.sessions.get(ref(name))


async def test_while_the_archive_lags_an_erasure_is_not_done_and_a_repeat_completes_it(
    hybrid_settings, redis, sql
):
    hurried = msgspec.structs.replace(hybrid_settings, archive_wait_seconds=0.1)
    patient = msgspec.structs.replace(hybrid_settings, archive_wait_seconds=10)
    async with kept(hurried) as hybrid, kept(patient) as another:
        await live(hybrid, "s")
        with pytest.raises(ArchiveUnavailable, match="repeated"):
            await erase(hybrid)
        # It is forgotten already for whoever asks, and the repeat knows what it has to wait for.
        with pytest.raises(SessionNotFound):
            await hybrid.store.sessions.get(ref(f"{ADA}-s"))
        with pytest.raises(ArchiveUnavailable):
            await erase(hybrid)
        async with flushing(hybrid):
            await erase(another)
        await assert_nothing_of(ADA, redis, sql)


async def test_without_postgresql_nothing_is_done_and_a_repeat_completes_it(
    hybrid, redis, sql, monkeypatch
):
    await live(hybrid, "s")
    await hybrid.flush()

    async def away(*_: object) -> None:
        raise ArchiveUnavailable("The archive did not answer in time.")

    with monkeypatch.context() as broken:
        # Away from the moment at which the first session is forgotten in Redis.
        broken.setattr(PostgresArchiveErasure, "erase", away)
        with pytest.raises(ArchiveUnavailable):
            await erase(hybrid)
    async with flushing(hybrid):
        await erase(hybrid)
    await assert_nothing_of(ADA, redis, sql)


async def test_a_session_that_became_anothers_is_not_erased(hybrid, redis, sql):
    await append(hybrid, "s")
    await hybrid.flush()
    await hybrid.store.sessions.delete(ref("s"))
    await append(hybrid, "s", user="eve", text="hello")
    # The archive still says that it is ada's.
    async with flushing(hybrid):
        erased = await erase(hybrid)
    # What was counted under the name is folded, and no session was ada's any more.
    assert (erased.hot_sessions, erased.archive_sessions) == (0, 0)
    await assert_nothing_of(ADA, redis, sql)
    [message] = await hybrid.store.transcripts.page(ref("s"), PageQuery(limit=9))
    assert message.content == "hello"


async def test_an_erasure_whose_reply_was_lost_counts_once(hybrid, redis):
    await append(hybrid, "s", promise=once("k"))
    hot = hybrid.store.erasure._hot
    door, run = hot._door, hot._door.run

    async def twice(script, keys, words):
        await run(script, keys, words)
        return await run(script, keys, words)

    door.run = twice
    try:
        async with flushing(hybrid):
            erased = await erase(hybrid)
    finally:
        door.run = run
    assert (erased.hot_sessions, erased.journal_entries, erased.idempotency_records) == (1, 1, 1)


async def test_two_erasures_beside_a_talking_user_leave_nothing(hybrid, redis, sql):
    for n in range(40):
        await append(hybrid, f"{ADA}-{n}", promise=once("k"))
        if n == 20:
            await hybrid.flush()
    async with flushing(hybrid):
        talking = asyncio.gather(*(append(hybrid, f"{ADA}-{n}") for n in range(40)))
        results = await asyncio.gather(erase(hybrid), erase(hybrid), return_exceptions=True)
        await talking
        assert not [one for one in results if not isinstance(one, Erased | ChatMemoryError)]
        with contextlib.suppress(UserNotFound):
            await erase(hybrid)
    await assert_nothing_of(ADA, redis, sql)


async def test_the_index_of_keys_lives_no_longer_than_its_records(hybrid, redis):
    await append(hybrid, "s", promise=once("k"))
    await append(hybrid, "unkeyed")
    [calls] = [key async for key in redis.scan_iter("{cm:*}:calls:*")]
    [record] = await redis.zrange(calls, 0, -1)
    left = await redis.pttl(record)
    assert left > 0
    assert abs(await redis.pttl(calls) - left) < 1000
    await redis.zadd(calls, {"expired": 1})
    await append(hybrid, "s", promise=once("k2"))
    assert await redis.zcard(calls) == 2


async def test_after_a_deletion_nothing_names_the_session(hybrid, redis, sql):
    await chat(hybrid, f"{ADA}-s", promise=once("k", "chat"))
    await hybrid.store.sessions.delete(ref(f"{ADA}-s"))
    await hybrid.flush()

    async def gone() -> bool:
        await assert_nothing_of(ADA, redis, sql)
        return True

    await eventually(gone, within_seconds=1)


async def test_an_erasure_and_a_flusher_take_the_counters_in_one_order(sql, database_url):
    """A third transaction holds one row in between, so that both must wait."""
    users, day = ["", "aa", "ada"], date(2026, 1, 1)

    async def count(connection: Any, names: list[str]) -> None:
        size = len(names)
        rows: tuple[list[Any], ...] = (["default"] * size, [day] * size, names, [""] * size)
        numbers = ([0] * size, [1] * size, *([0] * size for _ in range(3)))
        await connection.execute(COUNT, *rows, *numbers)

    await count(sql, users)
    third, flusher = await asyncpg.connect(database_url), await asyncpg.connect(database_url)
    door = PostgresDoor(database_url, ArchiveLimits(), name="test", observer=Recorder())
    held, flushing_ = third.transaction(), flusher.transaction()
    await held.start()
    await flushing_.start()
    await count(third, ["aa"])
    counting = asyncio.ensure_future(count(flusher, users))
    await eventually(lambda: waiting(sql, 1), within_seconds=5)
    folding = asyncio.ensure_future(PostgresArchiveErasure(door).forget_user("default", "ada"))
    await eventually(lambda: waiting(sql, 2), within_seconds=5)
    await held.commit()
    await counting
    await flushing_.commit()
    assert await folding
    for connection in (third, flusher):
        await connection.close()
    await door.close()
    assert await sql.fetchval("SELECT sum(messages) FROM daily_counts WHERE user_id = ''") == 4


async def test_an_erasure_and_a_flusher_take_rows_that_are_new_in_one_order(sql, database_url):
    days = [date(2026, 1, 1), date(2026, 1, 2)]

    async def count(connection: Any, places: list[tuple[date, str]]) -> None:
        size = len(places)
        names = [name for _, name in places]
        rows = (["default"] * size, [day for day, _ in places], names, [""] * size)
        await connection.execute(COUNT, *rows, [0] * size, [1] * size, *([0] * size,) * 3)

    await count(sql, [(day, "ada") for day in days])
    third, flusher = await asyncpg.connect(database_url), await asyncpg.connect(database_url)
    door = PostgresDoor(database_url, ArchiveLimits(), name="test", observer=Recorder())
    held = third.transaction()
    await held.start()
    await count(third, [(days[0], "")])
    folding = asyncio.ensure_future(PostgresArchiveErasure(door).forget_user("default", "ada"))
    await eventually(lambda: waiting(sql, 1), within_seconds=5)
    async with flusher.transaction():
        counting = asyncio.ensure_future(count(flusher, [(days[1], ""), (days[1], "ada")]))
        await asyncio.wait([counting], timeout=0.3)
        await held.commit()
        await counting
    assert await folding
    for connection in (third, flusher):
        await connection.close()
    await door.close()
    rows = await sql.fetch("SELECT user_id, sum(messages) AS n FROM daily_counts GROUP BY 1")
    assert {row["user_id"]: row["n"] for row in rows} == {"": 5}


async def waiting(sql: Any, count: int) -> bool:
    """Whether so many of the database's sessions wait for a lock."""
    found = await sql.fetchval(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    return found == count
