"""The hybrid store where two tiers, crashes and time meet; what all stores share is in contract."""

import asyncio
import contextlib
import secrets
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from service.adapters.postgres.archive import PostgresArchive
from service.adapters.postgres.keys import session_key
from service.adapters.redis.client import RedisDoor
from service.adapters.redis.keys import Keys
from service.bootstrap.ambient import SystemClock
from service.bootstrap.flushers import open_flusher
from service.bootstrap.stores import open_store
from service.core.background import ended
from service.domain.context import ContextOptions, Need
from service.domain.errors import (
    ArchiveUnavailable,
    BacklogFull,
    DurabilityUnavailable,
    HotUnavailable,
    PreconditionFailed,
    SessionNotFound,
    TurnNotWaiting,
)
from service.domain.ids import MessageId, TurnId
from service.domain.journal import Batch
from service.domain.messages import Content, MessageBody, encode_body
from service.domain.observations import BatchFlushed, FlushFailed, HotRead, PoolWaited
from service.domain.sessions import SessionDocument, SessionRef
from service.domain.summaries import Summary
from service.ports import (
    Append,
    Begin,
    Begun,
    Create,
    Filled,
    Filling,
    Finish,
    Once,
    PageQuery,
    Resumption,
    SessionQuery,
)
from service.settings import Settings
from tests.support.polling import eventually
from tests.support.stores import Kept, Recorder, kept, recall_of, ref, said, showing

ROOT = Path(__file__).parents[2]


@pytest.fixture
def settings(hybrid_settings: Settings) -> Settings:
    # The shortest TTL that can be set is 60 s; a test waits for one second only.
    return msgspec.structs.replace(hybrid_settings, session_ttl_seconds=1, hot_messages_max=20)


@pytest.fixture
async def hybrid(settings: Settings) -> AsyncGenerator[Kept]:
    async with kept(settings) as store:
        yield store


@pytest.fixture
async def redis(redis_url: str) -> AsyncGenerator[Redis]:
    async with Redis.from_url(redis_url, protocol=2) as client:
        await client.config_resetstat()
        yield client


@pytest.fixture
async def archive(database_url: str) -> AsyncGenerator[asyncpg.Connection]:
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


async def append(hybrid: Kept, *texts: str, at: SessionRef | None = None, user=None):
    command = Append(ref=at or ref(), bodies=tuple(map(said, texts)), user_id=user)
    return await hybrid.store.transcripts.append(command)


async def contents(hybrid: Kept, at: SessionRef | None = None) -> list[Content]:
    messages = await hybrid.store.transcripts.page(at or ref(), PageQuery(limit=1000))
    return [message.content for message in messages]


async def archived(archive: asyncpg.Connection, at: SessionRef | None = None) -> list[str]:
    rows = await archive.fetch(
        "SELECT body->>'content' AS text FROM messages WHERE session_key = $1 ORDER BY id",
        session_key(at or ref()),
    )
    return [row["text"] for row in rows]


async def gone_from_redis(redis: Redis) -> bool:
    return not [key async for key in redis.scan_iter("*:head:*")]


async def test_ids_made_by_the_script_and_read_from_the_journal_are_the_same(hybrid):
    ids = (await append(hybrid, *(str(n) for n in range(100)))).ids
    assert hybrid.store.journal is not None
    runs = await hybrid.store.journal.head([(shard, 100) for shard in range(16)])

    assert [entry.id for run in runs for entry in run] == list(ids)


async def test_nothing_unflushed_has_a_lifetime(hybrid, redis):
    await append(hybrid, "a", "b")
    keys = [key async for key in redis.scan_iter("*:head:*")]
    keys += [key async for key in redis.scan_iter("*:tail:*")]

    assert len(keys) == 2
    assert [await redis.pttl(key) for key in keys] == [-1, -1]
    await hybrid.flush()
    assert all([0 < await redis.pttl(key) <= 1000 for key in keys])


async def test_a_lifetime_that_passes_while_nothing_flushes_loses_nothing(hybrid, redis, archive):
    await append(hybrid, *(str(n) for n in range(30)), user="ada")
    await asyncio.sleep(1.3)  # The lifetime is 1 s: what is tested is that it passes.

    assert await archived(archive) == []
    assert await contents(hybrid) == [str(n) for n in range(30)]
    await hybrid.flush()
    await eventually(lambda: gone_from_redis(redis), within_seconds=5)
    assert await contents(hybrid) == [str(n) for n in range(30)]
    await append(hybrid, "30")
    assert await contents(hybrid) == [str(n) for n in range(31)]
    session = await hybrid.store.sessions.get(ref())
    assert (session.message_count, session.user_id) == (31, "ada")


async def test_history_outlives_the_loss_of_all_flushed_redis_data(hybrid, redis):
    await append(hybrid, *(str(n) for n in range(25)))
    await hybrid.flush()
    await redis.flushdb()

    recent = await hybrid.store.transcripts.recent(ref(), Need(last=3))
    assert [message.content for message in recent.messages] == ["22", "23", "24"]
    assert await contents(hybrid) == [str(n) for n in range(25)]


async def test_a_cold_read_makes_the_session_hot_again(hybrid, redis):
    await append(hybrid, *(str(n) for n in range(15)))
    await hybrid.flush()
    await redis.flushdb()
    hybrid.recorder.seen.clear()

    for _ in range(2):
        recent = await hybrid.store.transcripts.recent(ref(), Need(last=10))
        assert recent.ttl == 1
    assert [read.result for read in hybrid.recorder.of(HotRead)] == ["filled", "hit"]


async def test_racing_cold_reads_fill_once(hybrid, redis):
    await append(hybrid, *(str(n) for n in range(15)))
    await hybrid.flush()
    await redis.flushdb()
    hybrid.recorder.seen.clear()

    await asyncio.gather(
        *(hybrid.store.transcripts.recent(ref(), Need(last=10)) for _ in range(20))
    )
    results = [read.result for read in hybrid.recorder.of(HotRead)]
    assert sorted(results) == ["filled"] + ["hit"] * 19


async def test_an_append_to_a_cold_session_needs_no_archive(settings, redis_url):
    unreachable = msgspec.structs.replace(
        settings, database_url="postgresql://nobody@127.0.0.1:1/none"
    )
    async with kept(unreachable) as hybrid:
        assert len((await append(hybrid, "a")).ids) == 1


async def test_a_filling_that_was_overtaken_changes_nothing(hybrid, redis, monkeypatch):
    await append(hybrid, "a", "b")
    await hybrid.flush()
    await redis.flushdb()
    transcripts = hybrid.store.transcripts
    fill = transcripts._hot.fill

    async def overtaken(filling):
        monkeypatch.setattr(transcripts._hot, "fill", fill)
        await append(hybrid, "c")
        return await fill(filling)

    monkeypatch.setattr(transcripts._hot, "fill", overtaken)
    await transcripts.recent(ref(), Need(last=10))
    assert await contents(hybrid) == ["a", "b", "c"]
    recent = await transcripts.recent(ref(), Need(last=10))
    assert [message.content for message in recent.messages] == ["a", "b", "c"]


async def test_a_system_message_said_during_a_filling_is_kept_apart_all_the_same(
    hybrid, redis, monkeypatch
):
    await append(hybrid, "a", "b")
    await hybrid.flush()
    await redis.flushdb()
    await append(hybrid, "c")
    transcripts = hybrid.store.transcripts
    fill = transcripts._hot.fill

    async def overtaken(filling):
        monkeypatch.setattr(transcripts._hot, "fill", fill)
        rule = Append(ref=ref(), bodies=(said("rule", "system"),))
        await transcripts.append(rule)
        return await fill(filling)

    monkeypatch.setattr(transcripts._hot, "fill", overtaken)
    await transcripts.recent(ref(), Need(last=10))
    await append(hybrid, "d")
    recent = await transcripts.recent(ref(), Need(last=1))
    assert [message.content for message in recent.pinned] == ["rule"]


async def test_evicted_keys_are_never_an_empty_history(hybrid, redis):
    await append(hybrid, "a", "b")
    await hybrid.flush()
    [tail] = [key async for key in redis.scan_iter("*:tail:*")]
    await redis.delete(tail)

    assert await contents(hybrid) == ["a", "b"]


async def test_a_replayed_batch_changes_nothing(settings, hybrid, archive):
    await append(hybrid, "a", "b")
    clock, recorder = SystemClock(), Recorder()
    async with open_flusher(settings, clock=clock, observer=recorder) as (flusher, ownership):
        await ownership.renew()
        journal, writer = flusher._journal, flusher._carrier._writer
        runs = await journal.head([(shard, 10) for shard in range(16)])
        batch = flusher_batch(runs)
        first, second = await writer.write(batch), await writer.write(batch)
        assert (first.rows, second.rows, second.duplicates) == (2, 0, 2)
        assert await archive.fetchval("SELECT sum(messages) FROM daily_counts") == 2

        await hybrid.store.transcripts.clear(ref())
        await append(hybrid, "c")
        await flusher.drain()
        late = await writer.write(batch)
        assert late.rows == 0
        await ownership.give_up()

    assert await archived(archive) == ["c"]
    assert await archive.fetchval("SELECT message_count FROM sessions") == 1
    assert await archive.fetchval("SELECT sum(messages) FROM daily_counts") == 3
    assert await contents(hybrid) == ["c"]


def flusher_batch(runs):
    return Batch(entries=tuple(entry for run in runs for entry in run))


async def test_two_flushers_on_the_same_shards_write_each_message_once(settings, hybrid, archive):
    sessions = [ref(f"s{n}") for n in range(20)]
    for at in sessions:
        await append(hybrid, *(str(n) for n in range(20)), at=at)
    clock, recorder = SystemClock(), Recorder()
    async with (
        open_flusher(settings, clock=clock, observer=recorder) as (one, _),
        open_flusher(settings, clock=clock, observer=recorder) as (two, _),
    ):
        for flusher in (one, two):
            # As after a lost lease: both believe that all shards are theirs.
            flusher._ownership._owned = list(range(16))
            flusher._ownership._valid_until = float("inf")
        await asyncio.gather(*(drained(flusher) for flusher in (one, two, one, two)))

    assert await archive.fetchval("SELECT count(*) FROM messages") == 400
    counts = await archive.fetch("SELECT message_count FROM sessions")
    assert [row["message_count"] for row in counts] == [20] * 20


async def drained(flusher):
    while await flusher.flush_once():
        pass


async def test_a_flusher_killed_between_commit_and_trim_doubles_nothing(
    settings, hybrid, archive, database_url, redis_url
):
    sessions = [ref(f"s{n}") for n in range(8)]
    for at in sessions:
        await append(hybrid, *(str(n) for n in range(25)), at=at, user="ada")

    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.support.stuck_flusher",
        database_url,
        redis_url,
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), 30)
        assert line == b"committed\n"
    finally:
        process.kill()
        await process.wait()

    assert await archive.fetchval("SELECT count(*) FROM messages") == 200
    backlog = await hybrid.store.journal.backlog(range(16))
    assert sum(shard.entries for shard in backlog) == 200

    async def flushed() -> bool:
        # The dead flusher's leases end within their second.
        await hybrid.flush()
        left = await hybrid.store.journal.backlog(range(16))
        return sum(shard.entries for shard in left) == 0

    await eventually(flushed, within_seconds=10)
    assert await archive.fetchval("SELECT count(*) FROM messages") == 200
    for at in sessions:
        assert await contents(hybrid, at) == [str(n) for n in range(25)]
        assert await archived(archive, at) == [str(n) for n in range(25)]
        assert (await hybrid.store.sessions.get(at)).message_count == 25
    counts = await archive.fetch("SELECT message_count, user_id FROM sessions")
    assert [tuple(row) for row in counts] == [(25, "ada")] * 8


class LostReplies:
    """Lets the first command run and loses its reply, as a cut network does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._command = RedisDoor._command
        self._monkeypatch = monkeypatch
        self.lost = 0

    def lose_next(self) -> None:
        outer = self

        async def command(door: RedisDoor, *words: Any) -> Any:
            reply = await outer._command(door, *words)
            outer._monkeypatch.setattr(RedisDoor, "_command", outer._command)
            outer.lost += 1
            raise RedisConnectionError(str(reply)[:0])

        self._monkeypatch.setattr(RedisDoor, "_command", command)


async def test_lost_replies_neither_double_nor_hide_a_write(hybrid, monkeypatch):
    replies = LostReplies(monkeypatch)
    document = SessionDocument(metadata={"a": 1})
    await append(hybrid, "warm up the scripts", at=ref("other"))

    replies.lose_next()
    await hybrid.store.sessions.create(Create(ref=ref(), user_id="ada", document=document))
    replies.lose_next()
    await append(hybrid, "a", "b")
    replies.lose_next()
    await hybrid.store.turns.begin(turn())
    replies.lose_next()
    called = await hybrid.store.turns.finish(msgspec.structs.replace(answer(), asked=b"{}"))
    assert called.message_id is not None
    replies.lose_next()
    await hybrid.store.turns.begin(going_on(called.message_id))
    assert await contents(hybrid) == ["a", "b", "hi", "hello", "42"]
    replies.lose_next()
    assert await hybrid.store.sessions.replace(ref(), document, SessionDocument())
    replies.lose_next()
    await hybrid.store.transcripts.clear(ref())
    assert await contents(hybrid) == []
    replies.lose_next()
    await hybrid.store.sessions.delete(ref())
    with pytest.raises(SessionNotFound):
        await contents(hybrid)
    assert replies.lost == 8


def turn(text="hi") -> Begin:
    return Begin(
        ref=ref(),
        turn_id=TurnId("turn"),
        body=said(text),
        options=showing(10),
        user_id=None,
        once=None,
        lease_token="token",
    )


def answer(text="hello") -> Finish:
    return Finish(
        ref=ref(),
        turn_id=TurnId("turn"),
        lease_token="token",
        body=said(text, "assistant"),
        result=b"{}",
        once=None,
    )


def going_on(calls_id: MessageId | None) -> Begin:
    result = MessageBody(role="tool", content="42", tool_call_id="c1")
    return msgspec.structs.replace(
        turn(),
        lease_token="results",
        resumes=Resumption(
            calls_id=calls_id, bodies=(encode_body(result),), fingerprint="r", asked=b"{}"
        ),
    )


@pytest.mark.parametrize("lost", ["everything", "the head"])
async def test_a_turn_goes_on_in_a_session_that_is_cold(hybrid, redis, lost):
    await append(hybrid, *(str(n) for n in range(40)))
    await hybrid.store.turns.begin(turn())
    called = await hybrid.store.turns.finish(msgspec.structs.replace(answer(), asked=b"{}"))
    await hybrid.flush()
    for key in [key async for key in redis.scan_iter("*:head:*" if lost == "the head" else "*")]:
        if b":once:" not in key and b":turn:" not in key:
            await redis.delete(key)

    begun = await hybrid.store.turns.begin(going_on(called.message_id))
    assert isinstance(begun, Begun)
    assert [m.content for m in begun.history.messages] == [str(n) for n in range(30, 40)]
    assert (await contents(hybrid))[-3:] == ["hi", "hello", "42"]


async def test_a_turn_does_not_go_on_in_a_cold_session_that_did(hybrid, redis):
    await hybrid.store.turns.begin(turn())
    called = await hybrid.store.turns.finish(msgspec.structs.replace(answer(), asked=b"{}"))
    await append(hybrid, "another question")
    await hybrid.flush()
    for key in [key async for key in redis.scan_iter("*:head:*")]:
        await redis.delete(key)
    with pytest.raises(TurnNotWaiting):
        await hybrid.store.turns.begin(going_on(called.message_id))
    assert await contents(hybrid) == ["hi", "hello", "another question"]


async def test_a_note_beside_the_filling_of_a_cold_session_ends_no_waiting(
    hybrid, redis, monkeypatch
):
    await append(hybrid, *(str(n) for n in range(10)))
    await hybrid.store.turns.begin(turn())
    called = await hybrid.store.turns.finish(msgspec.structs.replace(answer(), asked=b"{}"))
    await hybrid.flush()
    for key in [key async for key in redis.scan_iter("*:head:*")]:
        await redis.delete(key)
    hot = hybrid.store.turns._warming._hot
    fill, notes = hot.fill, [said("note", "system")]

    async def overtaken(filling: Filling) -> Filled | None:
        if notes:
            await hybrid.store.transcripts.append(Append(ref=ref(), bodies=(notes.pop(),)))
        return await fill(filling)

    monkeypatch.setattr(hot, "fill", overtaken)
    assert isinstance(await hybrid.store.turns.begin(going_on(called.message_id)), Begun)
    assert (await contents(hybrid))[-4:] == ["hi", "hello", "note", "42"]


@pytest.mark.parametrize("cold", [False, True])
async def test_what_was_said_since_counts_also_where_it_is_not_hot(hybrid, redis, cold):
    await hybrid.store.turns.begin(turn())
    called = await hybrid.store.turns.finish(msgspec.structs.replace(answer(), asked=b"{}"))
    await append(hybrid, "another question")
    notes = tuple(said(str(number), "system") for number in range(60))
    await hybrid.store.transcripts.append(Append(ref=ref(), bodies=notes))
    await hybrid.flush()
    if cold:
        for key in [key async for key in redis.scan_iter("*:head:*")]:
            await redis.delete(key)
    await hybrid.store.transcripts.append(Append(ref=ref(), bodies=(said("x", "system"),)))
    with pytest.raises(TurnNotWaiting):
        await hybrid.store.turns.begin(going_on(called.message_id))


async def test_results_are_refused_where_the_backlog_is_full(settings):
    small = msgspec.structs.replace(settings, journal_backlog_max=3)
    async with kept(small) as hybrid:
        await hybrid.store.turns.begin(turn())
        called = await hybrid.store.turns.finish(msgspec.structs.replace(answer(), asked=b"{}"))
        await append(hybrid, "elsewhere", at=_of_the_shard(small))
        with pytest.raises(BacklogFull):
            await hybrid.store.turns.begin(going_on(called.message_id))
        assert await contents(hybrid) == ["hi", "hello"]
        await hybrid.flush()
        assert isinstance(await hybrid.store.turns.begin(going_on(called.message_id)), Begun)


def _of_the_shard(settings: Settings) -> SessionRef:
    """Another session that shares its journal."""
    keys = Keys(settings.journal_shards)
    others = (ref(f"other{number}") for number in range(1000))
    return next(other for other in others if keys.shard(other) == keys.shard(ref()))


async def test_a_turn_that_waits_is_remembered_as_long_as_a_key(hybrid, redis):
    await hybrid.store.turns.begin(turn())
    called = await hybrid.store.turns.finish(msgspec.structs.replace(answer(), asked=b"{}"))
    for finishes in (False, True):
        for kind in ("once", "turn"):
            lives = [await redis.ttl(key) async for key in redis.scan_iter(f"*:{kind}:*")]
            assert max(lives) > 86_000
        if not finishes:
            await hybrid.store.turns.begin(going_on(called.message_id))


async def test_a_short_promise_to_keys_ends_no_turn_that_runs(settings, redis):
    hurried = msgspec.structs.replace(settings, idempotency_ttl_seconds=60)
    async with kept(hurried) as hybrid:
        once = Once(operation="chat", key="k", fingerprint="f")
        await hybrid.store.turns.begin(msgspec.structs.replace(turn(), once=once))
        for kind in ("once", "turn"):
            [left] = [await redis.ttl(key) async for key in redis.scan_iter(f"*:{kind}:*")]
            assert left > 200


async def test_a_warm_turn_that_goes_on_is_a_round_trip_and_no_sql(hybrid, redis):
    await append(hybrid, *(str(n) for n in range(15)))
    await hybrid.store.turns.begin(turn())
    called = await hybrid.store.turns.finish(msgspec.structs.replace(answer(), asked=b"{}"))
    await hybrid.flush()
    await load_scripts(hybrid)
    before, hybrid.recorder.seen[:] = await commands(redis), []
    await hybrid.store.turns.begin(going_on(called.message_id))
    assert await commands(redis) - before == 1
    assert hybrid.recorder.of(PoolWaited) == []


async def test_a_warm_turn_is_two_round_trips_and_no_sql(hybrid, redis):
    await append(hybrid, *(str(n) for n in range(15)))
    await hybrid.flush()
    await hybrid.store.transcripts.recent(ref(), Need(last=None))
    await load_scripts(hybrid)
    before, hybrid.recorder.seen[:] = await commands(redis), []

    begun = await hybrid.store.turns.begin(turn())
    shown = [message.content for message in begun.history.messages]
    assert shown[-10:] == [str(n) for n in range(5, 15)]
    await hybrid.store.turns.finish(answer())
    assert await commands(redis) - before == 2
    assert hybrid.recorder.of(PoolWaited) == []


@pytest.mark.parametrize("strategy", ["tokens", "summary"])
async def test_a_warm_turn_with_a_budget_is_two_round_trips_and_no_sql(hybrid, redis, strategy):
    bodies = (MessageBody(role="user", content=str(n), token_count=10) for n in range(15))
    command = Append(ref=ref(), bodies=tuple(map(encode_body, bodies)))
    [first, *_] = (await hybrid.store.transcripts.append(command)).ids
    summary = Summary(text="They counted.", from_id=first, through_id=first, model="m")
    assert await hybrid.store.sessions.summarise(ref(), None, summary)
    await hybrid.flush()
    await hybrid.store.transcripts.recent(ref(), Need(tokens=1000))
    await load_scripts(hybrid)
    before, hybrid.recorder.seen[:] = await commands(redis), []

    options = ContextOptions(strategy=strategy, max_tokens=100)
    command = msgspec.structs.replace(turn(), options=options, cost=90)
    begun = await hybrid.store.turns.begin(command)
    assert isinstance(begun, Begun)
    assert len(begun.history.messages) >= 10
    assert begun.history.summary == summary
    await hybrid.store.turns.finish(answer())
    assert await commands(redis) - before == 2
    assert hybrid.recorder.of(PoolWaited) == []


@pytest.mark.parametrize(
    ("own", "asked", "enough"),
    [
        (None, ContextOptions(max_tokens=200), True),
        (None, ContextOptions(max_tokens=400), False),
        (None, ContextOptions(strategy="tokens"), False),
        (ContextOptions(max_tokens=200), ContextOptions(), True),
        (ContextOptions(max_tokens=400), ContextOptions(), False),
        (ContextOptions(max_tokens=400), ContextOptions(strategy="summary"), False),
        (ContextOptions(max_tokens=200), ContextOptions(strategy="summary"), True),
        (ContextOptions(last=10), ContextOptions(strategy="window"), True),
        (ContextOptions(last=30), ContextOptions(strategy="window"), False),
        (ContextOptions(max_tokens=400), ContextOptions(last=10), True),
        (ContextOptions(max_tokens=200), ContextOptions(strategy="window"), False),
    ],
)
async def test_a_turn_needs_the_archive_before_it_stores_anything_or_not_at_all(
    settings, own, asked, enough
):
    long = msgspec.structs.replace(settings, session_ttl_seconds=600)
    nowhere = msgspec.structs.replace(long, database_url="postgresql://nobody@127.0.0.1:1/none")
    async with kept(long) as hybrid, kept(nowhere) as away:
        await _a_turn_needs_the_archive_or_not(hybrid, away, own, asked, enough=enough)


async def _a_turn_needs_the_archive_or_not(
    hybrid: Kept,
    away: Kept,
    own: ContextOptions | None,
    asked: ContextOptions,
    *,
    enough: bool,
) -> None:
    document = SessionDocument(context=own)
    await hybrid.store.sessions.create(Create(ref=ref(), document=document))
    count = '"token_count":999'
    for start in range(0, 40, 10):
        bodies = (
            MessageBody(role="user", content=f"{n} {count}", metadata={"m": count}, token_count=10)
            for n in range(start, start + 10)
        )
        command = Append(ref=ref(), bodies=tuple(map(encode_body, bodies)))
        await hybrid.store.transcripts.append(command)
        await hybrid.flush()
    held = await hybrid.store.transcripts.page(ref(), PageQuery(limit=100))
    assert len(held) == 40

    command = msgspec.structs.replace(turn(), options=asked, cost=10)
    if enough:
        begun = await away.store.turns.begin(command)
        assert isinstance(begun, Begun)
        assert begun.history.messages[-1].content == f"39 {count}"
        return
    with pytest.raises(ArchiveUnavailable):
        await away.store.turns.begin(command)
    assert await hybrid.store.transcripts.page(ref(), PageQuery(limit=100)) == held
    begun = await hybrid.store.turns.begin(command)
    assert isinstance(begun, Begun)
    assert len(begun.history.messages) >= 30


async def load_scripts(hybrid: Kept) -> None:
    """A turn elsewhere: a script's first call on a server is two."""
    elsewhere = ref("elsewhere")
    await append(hybrid, "x", at=elsewhere)
    await hybrid.store.transcripts.recent(elsewhere, Need(last=None))
    await hybrid.store.turns.begin(msgspec.structs.replace(turn(), ref=elsewhere))
    await hybrid.store.turns.finish(msgspec.structs.replace(answer(), ref=elsewhere))


async def commands(redis: Redis) -> int:
    stats = await redis.info("commandstats")
    return sum(stats[name]["calls"] for name in stats if name.startswith("cmdstat_eval"))


async def test_a_full_backlog_refuses_and_keeps_what_it_has(settings):
    small = msgspec.structs.replace(settings, journal_backlog_max=3)
    async with kept(small) as hybrid:
        await append(hybrid, "a", "b", "c")
        with pytest.raises(BacklogFull):
            await append(hybrid, "d")
        assert await contents(hybrid) == ["a", "b", "c"]
        await hybrid.flush()
        await append(hybrid, "d")
        assert await contents(hybrid) == ["a", "b", "c", "d"]


async def test_a_backlog_too_large_in_bytes_refuses(settings):
    small = msgspec.structs.replace(settings, journal_backlog_bytes_max=2000)
    async with kept(small) as hybrid:
        await append(hybrid, "x" * 1500)
        with pytest.raises(BacklogFull):
            await append(hybrid, "x" * 600)
        await hybrid.flush()
        await append(hybrid, "x" * 600)
        assert len(await contents(hybrid)) == 2


async def test_another_number_of_shards_is_refused(settings, hybrid):
    await append(hybrid, "a")
    other = msgspec.structs.replace(settings, journal_shards=4)
    async with open_store(other, clock=SystemClock(), observer=Recorder()) as store:
        with pytest.raises(HotUnavailable, match="JOURNAL_SHARDS is 4"):
            await store.transcripts.append(Append(ref=ref(), bodies=(said("b"),)))


async def test_a_redis_that_may_evict_the_journal_is_refused(settings, redis):
    await redis.config_set("maxmemory-policy", "allkeys-lru")
    try:
        async with open_store(settings, clock=SystemClock(), observer=Recorder()) as store:
            with pytest.raises(HotUnavailable, match="maxmemory-policy is allkeys-lru"):
                await store.transcripts.append(Append(ref=ref(), bodies=(said("a"),)))
    finally:
        await redis.config_set("maxmemory-policy", "noeviction")


async def test_shards_are_shared_and_move_when_a_flusher_leaves(settings):
    clock, recorder = SystemClock(), Recorder()
    async with (
        open_flusher(settings, clock=clock, observer=recorder) as (_, one),
        open_flusher(settings, clock=clock, observer=recorder) as (_, two),
    ):
        await one.renew()
        assert len(one.owned) == 16
        for ownership in (two, one, two):
            await ownership.renew()
        assert (len(one.owned), len(two.owned)) == (8, 8)
        assert set(one.owned) | set(two.owned) == set(range(16))

        await one.give_up()
        await two.renew()
        assert len(two.owned) == 16
        await two.give_up()


async def test_a_session_with_a_pending_deletion_is_not_listed(hybrid):
    for name in ("a", "b"):
        await append(hybrid, "x", at=ref(name))
    await hybrid.flush()
    await hybrid.store.sessions.delete(ref("a"))

    page = await hybrid.store.sessions.newest(SessionQuery(tenant="default", limit=10))
    assert [session.id for session in page.items] == ["b"]


async def test_a_clear_in_the_batch_of_what_it_clears_keeps_owner_and_document(hybrid, redis):
    document = SessionDocument(metadata={"a": 1})
    await hybrid.store.sessions.create(Create(ref=ref(), user_id="ada", document=document))
    await append(hybrid, "a")
    await hybrid.store.transcripts.clear(ref())
    await hybrid.flush()
    await redis.flushdb()

    session = await hybrid.store.sessions.get(ref())
    assert (session.user_id, session.document, session.message_count) == ("ada", document, 0)
    assert (session.last_id, session.archived_through) == (None, None)


async def test_a_session_made_again_and_cleared_in_one_batch_exists(hybrid, redis):
    await append(hybrid, "a", user="ada")
    await hybrid.flush()
    await hybrid.store.sessions.delete(ref())
    await append(hybrid, "b", user="eve")
    await hybrid.store.transcripts.clear(ref())
    await hybrid.flush()
    await redis.flushdb()

    assert (await hybrid.store.sessions.get(ref())).user_id == "eve"


@pytest.mark.parametrize("how", ["clear", "delete"])
async def test_what_is_forgotten_right_after_a_cold_append_stays_forgotten(hybrid, redis, how):
    document = SessionDocument(metadata={"a": 1})
    await hybrid.store.sessions.create(Create(ref=ref(), user_id="ada", document=document))
    await append(hybrid, "a")
    await hybrid.flush()
    await redis.flushdb()
    await append(hybrid, "b")

    if how == "clear":
        await hybrid.store.transcripts.clear(ref())
        session = await hybrid.store.sessions.get(ref())
        assert (session.user_id, session.document, session.last_id) == ("ada", document, None)
        assert await contents(hybrid) == []
    else:
        await hybrid.store.sessions.delete(ref())
        with pytest.raises(SessionNotFound):
            await hybrid.store.sessions.get(ref())


async def test_a_failed_turn_is_said_again_where_its_session_was_deleted_and_is_cold(hybrid, redis):
    once = Once(operation="chat", key="k", fingerprint="f")
    command = msgspec.structs.replace(turn(), once=once)
    await hybrid.store.turns.begin(command)
    await hybrid.store.turns.fail(msgspec.structs.replace(answer(), once=once, body=None))
    await hybrid.store.sessions.delete(ref())
    await hybrid.flush()
    for key in [key async for key in redis.scan_iter("*:head:*")]:
        await redis.delete(key)

    await hybrid.store.turns.begin(command)
    assert await contents(hybrid) == ["hi"]


async def test_the_last_message_is_asked_of_the_archive_where_the_session_is_cold(hybrid, redis):
    last_id = (await append(hybrid, "a", "b")).ids[-1]
    await hybrid.flush()
    await redis.flushdb()

    for wrong in (None, MessageId(last_id.replace("7", "8"))):
        command = Append(ref=ref(), bodies=(said("x"),), if_last_id=wrong)
        with pytest.raises(PreconditionFailed) as caught:
            await hybrid.store.transcripts.append(command)
        assert caught.value.last_id == last_id
    command = Append(ref=ref(), bodies=(said("c"),), if_last_id=last_id)
    await hybrid.store.transcripts.append(command)
    assert await contents(hybrid) == ["a", "b", "c"]


async def test_what_is_fsynced_was_waited_for_also_on_a_repeat(hybrid, redis):
    once = Once(operation="append", key="k", fingerprint="f")
    command = Append(ref=ref(), bodies=(said("a"),), once=once, durability="fsynced")
    for count in (1, 2):
        await hybrid.store.transcripts.append(command)
        stats = await redis.info("commandstats")
        assert stats["cmdstat_waitaof"]["calls"] == count
    assert await contents(hybrid) == ["a"]


async def test_without_an_append_only_file_fsynced_is_refused(hybrid, redis):
    await redis.config_set("appendonly", "no")
    try:
        with pytest.raises(DurabilityUnavailable, match="no append-only file"):
            await hybrid.store.transcripts.append(
                Append(ref=ref(), bodies=(said("a"),), durability="fsynced")
            )
    finally:
        await redis.config_set("appendonly", "yes")


async def test_a_cancelled_call_ends_wherever_it_is(hybrid):
    async def append_on() -> None:
        while True:
            await append(hybrid, "x")
            await hybrid.flush()

    for step in range(150):
        task = asyncio.create_task(append_on())
        await asyncio.sleep(step % 25 / 2000)
        task.cancel()
        await asyncio.wait([task], timeout=2)
        assert task.cancelled()


async def test_a_task_that_swallows_a_cancellation_is_ended_all_the_same():
    async def stubborn() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await asyncio.Event().wait()

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    await asyncio.wait_for(ended(task), 5)
    assert task.cancelled()


async def test_the_archive_answers_while_redis_is_away(settings, hybrid):
    await append(hybrid, "a", "b")
    await hybrid.flush()
    away = msgspec.structs.replace(settings, redis_url="redis://127.0.0.1:1/0")
    async with open_store(away, clock=SystemClock(), observer=Recorder()) as store:
        query = PageQuery(limit=10, archive_only=True)
        assert [m.content for m in await store.transcripts.page(ref(), query)] == ["a", "b"]
        with pytest.raises(HotUnavailable):
            await store.transcripts.page(ref(), PageQuery(limit=10))


async def test_large_messages_are_flushed_in_batches_that_fit(settings, redis, archive):
    small = msgspec.structs.replace(settings, flush_batch_bytes_max=10_000)
    async with kept(small) as hybrid:
        await append(hybrid, *(str(n) * 4000 for n in range(9)))
        await append(hybrid, "x" * 50_000, "small")
        await hybrid.flush()
        sizes = [batch.entries for batch in hybrid.recorder.of(BatchFlushed)]
        assert sum(sizes) == 11
        assert max(sizes) <= 3
    assert len(await archived(archive)) == 11


async def test_batches_shrink_after_a_failure_and_grow_again(settings, hybrid, monkeypatch):
    await append(hybrid, *(str(n) for n in range(40)))
    clock, recorder = SystemClock(), Recorder()
    small = msgspec.structs.replace(settings, flush_batch_max=16)
    async with open_flusher(small, clock=clock, observer=recorder) as (flusher, ownership):
        await ownership.renew()
        write = flusher._carrier._writer.write

        async def refuse(batch: Batch) -> Any:
            raise ArchiveUnavailable("too large")

        monkeypatch.setattr(flusher._carrier._writer, "write", refuse)
        for _ in range(3):
            with pytest.raises(ArchiveUnavailable):
                await flusher.flush_once()
        monkeypatch.setattr(flusher._carrier._writer, "write", write)
        while await flusher.flush_once():
            pass
        await ownership.give_up()
    assert [batch.entries for batch in recorder.of(BatchFlushed)] == [2, 4, 8, 16, 10]
    assert [failed.entries for failed in recorder.of(FlushFailed)] == [16, 8, 4]


async def test_a_flusher_stops_in_time_while_others_go_on_writing(settings, hybrid):
    clock, recorder = SystemClock(), Recorder()

    async def write_on() -> None:
        while True:
            await append(hybrid, "x", at=ref(secrets.token_hex(4)))

    async with open_flusher(settings, clock=clock, observer=recorder) as (flusher, _):
        await flusher.start()
        writers = [asyncio.create_task(write_on()) for _ in range(16)]
        await eventually(lambda: recorder.of(BatchFlushed), within_seconds=10)
        try:
            await asyncio.wait_for(flusher.stop(), 8)
        finally:
            for writer in writers:
                await ended(writer)


async def test_archived_is_not_said_of_what_a_lost_redis_took_along(settings, redis):
    async with kept(msgspec.structs.replace(settings, archive_wait_seconds=5)) as hybrid:
        command = Append(ref=ref(), bodies=(said("a"),), durability="archived")
        waiting = asyncio.create_task(hybrid.store.transcripts.append(command))

        async def journaled() -> bool:
            return bool([key async for key in redis.scan_iter("*:journal")])

        await eventually(journaled, within_seconds=5)
        await redis.flushdb()
        with pytest.raises(ArchiveUnavailable, match="not in the archive"):
            await waiting


async def test_a_replay_that_a_clear_extends_keeps_the_document_of_a_session_made_again(
    settings, hybrid, redis
):
    document = SessionDocument(metadata={"k": 1})
    await append(hybrid, "old")
    await hybrid.flush()
    await hybrid.store.sessions.delete(ref())
    await hybrid.store.sessions.create(Create(ref=ref(), user_id="bob", document=document))
    clock, recorder = SystemClock(), Recorder()
    async with open_flusher(settings, clock=clock, observer=recorder) as (flusher, _):
        # Committed, and the flusher died before the trim.
        runs = await flusher._journal.head([(shard, 10) for shard in range(16)])
        await flusher._carrier._writer.write(flusher_batch(runs))
    await hybrid.store.transcripts.clear(ref())
    await hybrid.flush()
    await redis.flushdb()

    session = await hybrid.store.sessions.get(ref())
    assert (session.user_id, session.document) == ("bob", document)


async def test_a_deleted_sessions_failed_turn_is_said_again_in_the_one_made_after_it(hybrid, redis):
    once = Once(operation="chat", key="k", fingerprint="f")
    command = msgspec.structs.replace(turn(), once=once)
    await hybrid.store.turns.begin(command)
    await hybrid.store.turns.fail(msgspec.structs.replace(answer(), once=once, body=None))
    await hybrid.store.sessions.delete(ref())
    await hybrid.flush()
    for key in [key async for key in redis.scan_iter("*:head:*")]:
        await redis.delete(key)
    await hybrid.store.transcripts.recent(ref(), Need(last=5))
    await append(hybrid, "new")

    begun = await hybrid.store.turns.begin(command)
    assert [message.content for message in begun.history.messages] == ["new"]
    assert await contents(hybrid) == ["new", "hi"]


async def test_a_session_flushed_during_a_listing_is_in_it(hybrid, monkeypatch):
    await append(hybrid, "x")
    sessions = hybrid.store.sessions
    unarchived = sessions._hot.unarchived

    async def flushed_after(tenant: str) -> Any:
        found = await unarchived(tenant)
        await hybrid.flush()
        return found

    monkeypatch.setattr(sessions._hot, "unarchived", flushed_after)
    page = await sessions.newest(SessionQuery(tenant="default", limit=10))
    assert [session.id for session in page.items] == ["s"]


async def test_a_hot_session_is_shown_and_chatted_in_while_the_archive_is_away(settings, hybrid):
    await append(hybrid, *(str(n) for n in range(8)), user="ada")
    await hybrid.store.transcripts.recent(ref(), Need(last=5))
    await hybrid.flush()
    url = "postgresql://nobody@127.0.0.1:1/none"
    away = msgspec.structs.replace(settings, database_url=url, session_ttl_seconds=60)
    async with open_store(away, clock=SystemClock(), observer=Recorder()) as store:
        recall = recall_of(store)
        shown = await recall.context(ref(), ContextOptions(last=3))
        assert ([m.content for m in shown.shown.messages], shown.left_out) == (["5", "6", "7"], 5)
        assert len((await recall.history(ref(), limit=4)).messages) == 4
        begun = await store.turns.begin(msgspec.structs.replace(turn(), user_id="ada"))
        assert isinstance(begun, Begun)
        assert len(begun.history.messages) == 8
        with pytest.raises(ArchiveUnavailable):
            await store.turns.begin(msgspec.structs.replace(turn(), ref=ref("cold")))


async def test_a_read_that_a_clear_tears_is_read_again(hybrid, monkeypatch):
    await append(hybrid, *(str(n) for n in range(60)))
    await hybrid.flush()
    warming = hybrid.store.transcripts._warming
    page = warming.archive.page

    async def after_a_clear(*arguments: Any, **options: Any) -> list[bytes]:
        monkeypatch.setattr(warming.archive, "page", page)
        await hybrid.store.transcripts.clear(ref())
        await append(hybrid, "new")
        await hybrid.flush()
        return await page(*arguments, **options)

    monkeypatch.setattr(warming.archive, "page", after_a_clear)
    recent = await hybrid.store.transcripts.recent(ref(), Need(last=None))
    assert [message.content for message in recent.messages] == ["new"]


async def test_a_turn_that_cannot_be_shown_its_history_frees_its_session(hybrid, monkeypatch):
    await append(hybrid, *(str(n) for n in range(60)))
    await hybrid.flush()
    everything = msgspec.structs.replace(turn(), options=showing(None))

    async def away(*_arguments: Any, **_options: Any) -> Any:
        raise ArchiveUnavailable("away")

    async def passes(*_arguments: Any) -> None:
        return

    monkeypatch.setattr(hybrid.store.turns._warming, "recent", away)
    with pytest.raises(ArchiveUnavailable):
        await hybrid.store.turns.begin(everything)
    assert len(await contents(hybrid)) == 60

    monkeypatch.undo()
    await hybrid.store.transcripts.recent(ref(), Need(last=5))
    monkeypatch.setattr(hybrid.store.turns._warming, "complete", away)
    monkeypatch.setattr(hybrid.store.turns, "_warm", passes)
    with pytest.raises(ArchiveUnavailable):
        await hybrid.store.turns.begin(everything)
    monkeypatch.undo()
    other = msgspec.structs.replace(turn(), lease_token="other")
    assert isinstance(await hybrid.store.turns.begin(other), Begun)


async def test_a_late_batch_from_before_a_deletion_gives_no_message_away(settings, hybrid, archive):
    await append(hybrid, "of ada", user="ada")
    clock, recorder = SystemClock(), Recorder()
    async with open_flusher(settings, clock=clock, observer=recorder) as (flusher, ownership):
        await ownership.renew()
        runs = await flusher._journal.head([(shard, 10) for shard in range(16)])
        late = flusher_batch(runs)
        await flusher.drain()
        await hybrid.store.sessions.delete(ref())
        await append(hybrid, "of nobody")
        await flusher.drain()
        await flusher._carrier._writer.write(late)
        await ownership.give_up()
    rows = await archive.fetch("SELECT user_id FROM messages")
    assert [row["user_id"] for row in rows] == [None]


async def test_a_session_that_is_said_more_in_is_read_beyond_its_tail(hybrid, monkeypatch):
    for start in range(0, 60, 10):
        await append(hybrid, *(str(n) for n in range(start, start + 10)))
        await hybrid.flush()
    transcripts: Any = hybrid.store.transcripts
    fill, said_more = transcripts._hot.fill, 0

    async def overtaken(filling: Any) -> Any:
        nonlocal said_more
        said_more += 1
        await append(hybrid, f"more {said_more}")
        return await fill(filling)

    monkeypatch.setattr(transcripts._hot, "fill", overtaken)
    for need in (Need(), Need(last=50), Need(tokens=10_000)):
        recent = await transcripts.recent(ref(), need)
        texts = [message.content for message in recent.messages]
        spoken = [text for text in texts if not str(text).startswith("more")]
        assert spoken == [str(n) for n in range(60)][-len(spoken) :]
        assert len(texts) >= (need.last or 60)
    # One each, and one more for what does not depend on messages.
    assert said_more == 4


async def test_a_session_that_is_cleared_meanwhile_is_read_again(hybrid, monkeypatch):
    for start in range(0, 60, 10):
        await append(hybrid, *(str(n) for n in range(start, start + 10)))
        await hybrid.flush()
    transcripts: Any = hybrid.store.transcripts
    fill = transcripts._hot.fill

    async def overtaken(filling: Any) -> Any:
        monkeypatch.setattr(transcripts._hot, "fill", fill)
        await transcripts.clear(ref())
        await append(hybrid, "new")
        return await fill(filling)

    monkeypatch.setattr(transcripts._hot, "fill", overtaken)
    recent = await transcripts.recent(ref(), Need())
    assert [message.content for message in recent.messages] == ["new"]


async def test_a_turn_begins_in_a_cold_session_that_is_said_more_in(hybrid, redis, monkeypatch):
    await append(hybrid, *(str(n) for n in range(30)))
    await hybrid.flush()
    await redis.flushdb()
    look = PostgresArchive.session

    async def beside(*arguments: Any) -> Any:
        await append(hybrid, "beside")
        return await look(*arguments)

    monkeypatch.setattr(PostgresArchive, "session", beside)
    begun = await hybrid.store.turns.begin(turn())
    assert isinstance(begun, Begun)
    shown = [message.content for message in begun.history.messages]
    earlier = [text for text in shown if text != "beside"]
    assert earlier == [str(n) for n in range(30)][-len(earlier) :]
    assert len(shown) >= 10
