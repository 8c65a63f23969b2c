"""Entries that PostgreSQL refuses for their content get out of the way; nothing is lost by it."""

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import msgspec
import pytest
from redis.asyncio import Redis

from service.adapters.postgres.door import ArchiveLimits, PostgresDoor
from service.adapters.postgres.keys import session_key
from service.adapters.postgres.retention import PostgresRetention
from service.adapters.postgres.writer import PostgresArchiveWriter
from service.adapters.redis.dead_letters import RedisDeadLetters
from service.adapters.redis.journal import RedisJournal
from service.adapters.redis.keys import Keys
from service.adapters.redis.retention import RedisRetention
from service.bootstrap.ambient import SystemClock
from service.bootstrap.flushers import open_flusher
from service.core.dead_letters import DeadLetterDesk
from service.core.erasing import Erasing
from service.core.flushing import Flusher
from service.core.profiles import UserProfiles
from service.core.retaining import Retaining
from service.domain.context import Need
from service.domain.errors import (
    ArchiveUnavailable,
    BacklogFull,
    DeadLettered,
    DeadLetterNotFound,
    SessionNotFound,
)
from service.domain.ids import HIGHEST_ID, TurnId
from service.domain.messages import MessageBody, TurnCost, encode_body
from service.domain.observations import DeadLettered as Buried
from service.domain.observations import DeadLetterHandled, FlushFailed
from service.domain.sessions import SessionDocument, SessionRef
from service.domain.summaries import Summary
from service.ports import Append, Begin, Create, Finish, PageQuery
from service.settings import Settings
from tests.support.polling import eventually
from tests.support.stores import Kept, Recorder, kept, ref, said
from tests.support.traces import in_postgres, in_redis

POISON = "poison"
TOO_MANY = 2**64 - 1
"""What an unsigned counter of a model's server says of -1; PostgreSQL's numbers end before it."""


@pytest.fixture
def settings(hybrid_settings: Settings) -> Settings:
    return msgspec.structs.replace(hybrid_settings, hot_messages_max=10, archive_wait_seconds=5)


@pytest.fixture
async def hybrid(settings: Settings) -> AsyncGenerator[Kept]:
    async with kept(settings) as store:
        yield store


@pytest.fixture
async def redis(redis_url: str) -> AsyncGenerator[Redis]:
    async with Redis.from_url(redis_url, protocol=2) as client:
        yield client


@pytest.fixture
async def sql(database_url: str) -> AsyncGenerator[asyncpg.Connection]:
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


@pytest.fixture
async def picky(sql: asyncpg.Connection) -> None:
    """PostgreSQL refuses what says so."""
    await refuse(sql)


async def refuse(sql: asyncpg.Connection) -> None:
    await sql.execute(
        "ALTER TABLE messages ADD CONSTRAINT picky"
        f" CHECK (body->>'content' NOT LIKE '{POISON}%') NOT VALID"
    )


async def accept(sql: asyncpg.Connection) -> None:
    await sql.execute("ALTER TABLE messages DROP CONSTRAINT picky")


async def append(hybrid: Kept, *texts: str, at: SessionRef | None = None, **more: Any):
    command = Append(ref=at or ref(), bodies=tuple(map(said, texts)), **more)
    return await hybrid.store.transcripts.append(command)


async def shown(hybrid: Kept, at: SessionRef | None = None) -> list[Any]:
    """As paged through; what is shown as the newest must end alike."""
    page = await hybrid.store.transcripts.page(at or ref(), PageQuery(limit=1000))
    newest = await hybrid.store.transcripts.recent(at or ref(), Need(last=4))
    contents = [message.content for message in page]
    assert contents[-4:] == [message.content for message in newest.messages][-4:]
    return contents


async def archived(sql: asyncpg.Connection, at: SessionRef | None = None) -> list[str]:
    rows = await sql.fetch(
        "SELECT body->>'content' AS text FROM messages WHERE session_key = $1 ORDER BY id",
        session_key(at or ref()),
    )
    return [row["text"] for row in rows]


def desk_of(hybrid: Kept) -> DeadLetterDesk:
    assert hybrid.store.dead_letters is not None
    return hybrid.store.dead_letters


async def letters(hybrid: Kept):
    return await desk_of(hybrid).page(after=None, limit=1000)


async def entries(hybrid: Kept) -> int:
    assert hybrid.store.journal is not None
    return sum(shard.entries for shard in await hybrid.store.journal.backlog(range(16)))


async def lifetimes(redis: Redis) -> set[int]:
    return {
        await redis.pttl(key)
        for kind in ("head", "tail")
        async for key in redis.scan_iter(f"*:{kind}:*")
    }


async def lose_what_may_be_lost(redis: Redis) -> None:
    for kind in ("head", "tail", "pins"):
        async for key in redis.scan_iter(f"*:{kind}:*"):
            if await redis.pttl(key) > 0:
                await redis.delete(key)


async def nothing_is_left_of_letters(redis: Redis) -> None:
    left = [key async for key in redis.scan_iter("*") if b":letter" in key or b":dead:" in key]
    assert left == []
    async for key in redis.scan_iter("*:shard"):
        fields = await redis.hgetall(key)
        assert {fields.get(name, b"0") for name in (b"letters", b"letter_bytes")} == {b"0"}


@pytest.mark.usefixtures("picky")
async def test_the_refused_entry_becomes_a_letter_and_the_rest_flows_on(hybrid, redis, sql):
    for n in range(40):
        await append(hybrid, *(f"{m}" for m in range(5)), at=ref(f"s{n}"))
    ids = (await append(hybrid, "a", f"{POISON} pill", "b")).ids
    await append(hybrid, "c")
    await hybrid.flush()

    assert await entries(hybrid) == 0
    assert await archived(sql) == ["a", "b", "c"]
    assert await sql.fetchval("SELECT count(*) FROM messages") == 203
    assert await shown(hybrid) == ["a", f"{POISON} pill", "b", "c"]
    [letter] = await letters(hybrid)
    assert (letter.id, letter.reason, letter.attempts) == (ids[1], "23514", 1)
    found = await desk_of(hybrid).find(letter.id)
    assert found.entry is not None
    assert found.entry.body == said(f"{POISON} pill")
    assert abs(SystemClock().milliseconds() - letter.first_seen_milliseconds) < 10_000
    [buried] = hybrid.recorder.of(Buried)
    assert (buried.outcome, buried.reason, buried.kind) == ("buried", "23514", "message")
    # The session alone stays hot.
    keys = Keys(16).session(ref())
    assert [await redis.pttl(keys.head), await redis.pttl(keys.tail)] == [-1, -1]
    other = Keys(16).session(ref("s1"))
    assert await redis.pttl(other.head) > 0


@pytest.mark.usefixtures("picky")
async def test_a_letter_keeps_its_place_in_a_session_that_goes_on(hybrid, redis, sql):
    said_so_far = ["0", "1", POISON]
    await append(hybrid, *said_so_far)
    await hybrid.flush()
    for n in range(60):
        await append(hybrid, f"m{n}")
        said_so_far.append(f"m{n}")
        if n % 7 == 0:
            await hybrid.flush()
            await lose_what_may_be_lost(redis)
            assert await shown(hybrid) == said_so_far
    await hybrid.flush()
    session = await hybrid.store.sessions.get(ref())
    assert session.message_count == 63
    assert await redis.llen(Keys(16).session(ref()).tail) == 61
    await accept(sql)
    [letter] = await letters(hybrid)
    assert await desk_of(hybrid).retry(letter.id, by="test") is None
    assert await archived(sql) == said_so_far
    assert await shown(hybrid) == said_so_far
    # What stood behind the letter is trimmed, and what is hot may end.
    assert await redis.llen(Keys(16).session(ref()).tail) == 11
    assert min(await lifetimes(redis)) > 0
    await lose_what_may_be_lost(redis)
    assert await shown(hybrid) == said_so_far
    assert (await hybrid.store.sessions.get(ref())).message_count == 63
    await nothing_is_left_of_letters(redis)


@pytest.mark.usefixtures("picky")
async def test_what_is_archived_ends_before_a_letter(hybrid, redis, sql):
    ids = (await append(hybrid, "a", POISON, "b")).ids
    await hybrid.flush()
    session = await hybrid.store.sessions.get(ref(), wait_seconds=5)
    assert (session.last_id, session.archived_through) == (ids[2], ids[0])
    await accept(sql)
    await desk_of(hybrid).retry(ids[1], by="test")
    session = await hybrid.store.sessions.get(ref())
    assert session.archived_through == session.last_id == ids[2]


@pytest.mark.usefixtures("picky")
@pytest.mark.parametrize("texts", [(POISON,), (POISON, "b"), ("a", POISON), ("a", POISON, "b")])
async def test_who_waits_for_the_archive_is_told_of_the_refusal(hybrid, texts):
    async with flushing(hybrid):
        with pytest.raises(DeadLettered) as refused:
            await append(hybrid, *texts, durability="archived")
        assert (refused.value.code, refused.value.may_retry) == ("archive_unavailable", False)
        # What others say in the session is archived, and they are told so.
        assert (await append(hybrid, "c", durability="archived")).durability == "archived"
    assert await shown(hybrid) == [*texts, "c"]


@pytest.mark.usefixtures("picky")
@pytest.mark.parametrize("poisoned", ["question", "answer"])
async def test_a_turn_that_waits_for_the_archive_is_told_of_the_refusal(hybrid, poisoned):
    begin = Begin(
        ref=ref(),
        turn_id=TurnId("turn"),
        body=said(POISON if poisoned == "question" else "hi"),
        user_id=None,
        once=None,
        lease_token="t",
        durability="archived",
    )
    finish = Finish(
        ref=ref(),
        turn_id=TurnId("turn"),
        lease_token="t",
        body=said(POISON if poisoned == "answer" else "hello", "assistant"),
        result=b"{}",
        once=None,
        durability="archived",
    )
    async with flushing(hybrid):
        await hybrid.store.turns.begin(begin)
        with pytest.raises(DeadLettered):
            await hybrid.store.turns.finish(finish)
    assert len(await shown(hybrid)) == 2


class flushing:  # noqa: N801  # Reads as a statement.
    """The flusher runs beside, as in production."""

    def __init__(self, hybrid: Kept) -> None:
        self._hybrid = hybrid

    async def __aenter__(self) -> None:
        self._task = asyncio.create_task(self._flush())

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _flush(self) -> None:
        while True:
            await self._hybrid.flush()
            await asyncio.sleep(0.01)


@pytest.mark.usefixtures("picky")
async def test_a_retry_that_is_refused_counts_and_changes_nothing(hybrid, sql):
    [letter_id] = (await append(hybrid, POISON)).ids
    await hybrid.flush()
    assert await desk_of(hybrid).retry(letter_id, by="test") == "23514"
    [letter] = await letters(hybrid)
    assert (letter.attempts, letter.reason) == (2, "23514")
    assert letter.last_attempt_milliseconds >= letter.first_seen_milliseconds
    assert await shown(hybrid) == [POISON]
    assert await archived(sql) == []
    [handled] = hybrid.recorder.of(DeadLetterHandled)
    assert (handled.outcome, handled.by, handled.attempts) == ("refused", "test", 2)


@pytest.mark.usefixtures("picky")
async def test_a_dropped_message_is_gone_and_its_session_is_as_any(hybrid, redis, sql):
    ids = (await append(hybrid, "a", POISON, "b", f"{POISON} 2")).ids
    await hybrid.flush()
    await desk_of(hybrid).drop(ids[1], by="test")
    assert await shown(hybrid) == ["a", "b", f"{POISON} 2"]
    assert max(await lifetimes(redis)) == -1
    await desk_of(hybrid).drop(ids[3], by="test")
    assert await shown(hybrid) == ["a", "b"]
    session = await hybrid.store.sessions.get(ref())
    assert (session.message_count, session.last_id) == (2, ids[2])
    assert min(await lifetimes(redis)) > 0
    await append(hybrid, "c", if_last_id=ids[2])
    await hybrid.flush()
    await lose_what_may_be_lost(redis)
    assert await shown(hybrid) == ["a", "b", "c"] == await archived(sql)
    with pytest.raises(DeadLetterNotFound):
        await desk_of(hybrid).drop(ids[1], by="test")
    await nothing_is_left_of_letters(redis)


@pytest.mark.usefixtures("picky")
async def test_dropping_the_only_message_of_a_hot_tail_asks_the_archive(hybrid, redis, sql):
    ids = (await append(hybrid, "a", "b")).ids
    await hybrid.flush()
    await redis.flushdb()
    rule = Append(ref=ref(), bodies=(said(f"{POISON} rule", "system"),))
    [rule_id] = (await hybrid.store.transcripts.append(rule)).ids
    await hybrid.flush()
    recent = await hybrid.store.transcripts.recent(ref(), Need(last=1))
    assert [message.content for message in recent.messages] == ["b", f"{POISON} rule"]
    await desk_of(hybrid).drop(rule_id, by="test")
    assert await shown(hybrid) == ["a", "b"]
    recent = await hybrid.store.transcripts.recent(ref(), Need(last=1))
    assert recent.pinned == ()
    assert (await hybrid.store.sessions.get(ref())).last_id == ids[1]


@pytest.mark.usefixtures("picky")
@pytest.mark.parametrize("when", ["in the batch", "after"])
@pytest.mark.parametrize("how", ["clear", "delete"])
async def test_what_is_cleared_or_deleted_is_no_letter_any_more(hybrid, redis, sql, how, when):
    [letter_id] = (await append(hybrid, POISON)).ids
    await append(hybrid, "a")
    if when == "after":
        await hybrid.flush()
        assert len(await letters(hybrid)) == 1
    if how == "clear":
        await hybrid.store.transcripts.clear(ref())
    else:
        await hybrid.store.sessions.delete(ref())
    await append(hybrid, "b", f"{POISON} 2")
    await hybrid.flush()
    [letter] = await letters(hybrid)
    assert letter.id > letter_id
    assert await shown(hybrid) == ["b", f"{POISON} 2"]
    await accept(sql)
    with pytest.raises(DeadLetterNotFound):
        await desk_of(hybrid).retry(letter_id, by="test")
    await desk_of(hybrid).retry(letter.id, by="test")
    await lose_what_may_be_lost(redis)
    assert await shown(hybrid) == ["b", f"{POISON} 2"] == await archived(sql)
    await nothing_is_left_of_letters(redis)


@pytest.mark.usefixtures("picky")
@pytest.mark.parametrize("how", ["clear", "delete", "erase"])
async def test_a_retry_beside_a_forgetting_brings_nothing_back(
    hybrid, redis, sql, monkeypatch, how
):
    """The retry has read the letter; it writes when all is forgotten, in both tiers."""
    [letter_id] = (await append(hybrid, POISON, user_id="ada")).ids
    await append(hybrid, "a")
    await hybrid.flush()
    await accept(sql)
    write = PostgresArchiveWriter.write

    async def late(writer, batch):
        monkeypatch.setattr(PostgresArchiveWriter, "write", write)
        match how:
            case "clear":
                await hybrid.store.transcripts.clear(ref())
            case "delete":
                await hybrid.store.sessions.delete(ref())
            case _:
                async with flushing(hybrid):
                    await hybrid.store.erasure.erase("default", "ada")
        await hybrid.flush()
        return await write(writer, batch)

    monkeypatch.setattr(PostgresArchiveWriter, "write", late)
    await desk_of(hybrid).retry(letter_id, by="test")
    await hybrid.flush()
    await lose_what_may_be_lost(redis)
    assert await archived(sql) == []
    if how == "clear":
        assert await shown(hybrid) == []
    else:
        with pytest.raises(SessionNotFound):
            await hybrid.store.sessions.get(ref())
    await nothing_is_left_of_letters(redis)


@pytest.mark.usefixtures("picky")
async def test_an_erasure_takes_the_letters_and_counts_them(hybrid, redis, sql):
    text = f"{POISON} of ada@example.org"
    for name in ("s1", "s2"):
        await append(hybrid, "a", text, text, at=ref(name), user_id="ada@example.org")
    await append(hybrid, POISON, at=ref("eve's"), user_id="eve")
    await hybrid.flush()
    await append(hybrid, "b", at=ref("s1"))
    clock = SystemClock()
    profiles = UserProfiles(hybrid.store.profiles, bytes_max=1000, clock=clock)
    erasing = Erasing(hybrid.store.erasure, profiles.forget, clock)
    async with flushing(hybrid):
        receipt = (await erasing.erase("default", "ada@example.org")).erased
    assert (receipt.dead_letters, receipt.hot_sessions) == (4, 2)
    # The last message is in the journal or, by now, in the archive.
    assert receipt.archive_messages + receipt.journal_entries == 3
    for where in (await in_redis(redis), await in_postgres(sql)):
        assert b"ada@example.org" not in where
    [letter] = await letters(hybrid)
    assert letter.entry is not None
    assert letter.entry.ref == ref("eve's")


NOT_PICKY = f"document::text NOT LIKE '%{POISON}%' AND summary::text NOT LIKE '%{POISON}%'"


async def other_letters(hybrid: Kept, sql: asyncpg.Connection, *, flushes: bool = True):
    """A document and a summary that are letters; the document before it and the refused one."""
    await sql.execute(f"ALTER TABLE sessions ADD CONSTRAINT picky CHECK ({NOT_PICKY})")
    document = SessionDocument(metadata={"n": 1})
    bad = SessionDocument(metadata={"n": POISON}, ttl_seconds=100)
    await hybrid.store.sessions.create(Create(ref=ref(), user_id="ada", document=document))
    [first] = (await append(hybrid, "a")).ids
    await hybrid.flush()
    assert await hybrid.store.sessions.replace(ref(), document, bad)
    summary = Summary(text=POISON, from_id=first, through_id=first, model="m")
    assert await hybrid.store.sessions.summarise(ref(), None, summary)
    await append(hybrid, "b")
    if not flushes:
        return document
    await hybrid.flush()

    kinds = {letter.entry.kind for letter in await letters(hybrid) if letter.entry}
    assert kinds == {"document", "summary"}
    session = await hybrid.store.sessions.get(ref())
    assert (session.document, session.archived_through) == (bad, session.last_id)
    return document


async def test_a_dropped_document_gives_way_to_the_one_before_it(hybrid, redis, sql):
    document = await other_letters(hybrid, sql)
    for letter in await letters(hybrid):
        await desk_of(hybrid).drop(letter.id, by="test")
    await hybrid.store.transcripts.recent(ref(), Need(last=1))
    # Nothing else is unflushed: from here on the archive's word holds.
    session = await hybrid.store.sessions.get(ref())
    assert (session.document, session.user_id) == (document, "ada")
    assert session.ttl == 1800
    await nothing_is_left_of_letters(redis)


async def test_a_deleted_session_leaves_no_letters_of_any_kind(hybrid, redis, sql):
    await other_letters(hybrid, sql)
    await hybrid.store.sessions.delete(ref())
    assert await letters(hybrid) == []
    await append(hybrid, "b")
    await hybrid.flush()
    assert min(await lifetimes(redis)) > 0
    session = await hybrid.store.sessions.get(ref())
    assert (session.document, session.user_id) == (SessionDocument(), None)
    await nothing_is_left_of_letters(redis)


@pytest.mark.parametrize("when", ["a letter", "in the journal", "its beginning"])
async def test_a_cleared_session_keeps_the_letter_of_its_document(hybrid, redis, sql, when):
    if when == "its beginning":
        await sql.execute(f"ALTER TABLE sessions ADD CONSTRAINT picky CHECK ({NOT_PICKY})")
        bad = SessionDocument(metadata={"n": POISON})
        await hybrid.store.sessions.create(Create(ref=ref(), user_id="ada", document=bad))
        await append(hybrid, "a")
        await hybrid.flush()
    else:
        await other_letters(hybrid, sql, flushes=when == "a letter")
    shown_document = (await hybrid.store.sessions.get(ref())).document
    assert shown_document.metadata == {"n": POISON}
    await hybrid.store.transcripts.clear(ref())
    await hybrid.flush()
    [letter] = await letters(hybrid)
    assert letter.entry is not None
    assert letter.entry.kind == "document"
    await sql.execute("ALTER TABLE sessions DROP CONSTRAINT picky")
    assert await desk_of(hybrid).retry(letter.id, by="test") is None
    await lose_what_may_be_lost(redis)
    assert (await hybrid.store.sessions.get(ref())).document == shown_document
    await nothing_is_left_of_letters(redis)


@pytest.mark.usefixtures("picky")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("after", [False, True])
async def test_a_flusher_may_die_at_every_step(hybrid, redis, sql, monkeypatch, seed, after):
    """Before and after each call of a store; each try gets one step further than the last."""
    chance = random.Random(seed)
    texts = [POISON + str(n) if chance.random() < 0.2 else str(n) for n in range(12)]
    for start in range(0, 12, 3):
        await append(hybrid, *texts[start : start + 3])
        await append(hybrid, "x", POISON, at=ref(f"s{start}"))
    steps = Steps(monkeypatch, after=after)
    for step in range(200):
        steps.left = step
        try:
            await hybrid.flush()
        except Died:
            continue
        break
    else:
        raise AssertionError("it never got to the end")
    assert step > 4
    steps.left = 1000

    assert await entries(hybrid) == 0
    poisons = [text for text in texts if text.startswith(POISON)]
    bodies = [await desk_of(hybrid).find(letter.id) for letter in await letters(hybrid)]
    found = [one.entry.body for one in bodies if one.entry and one.entry.ref == ref()]
    assert found == [said(text) for text in poisons]
    assert len(bodies) == len(poisons) + 4
    assert await archived(sql) == [text for text in texts if text not in poisons]
    assert await shown(hybrid) == texts
    assert await sql.fetchval("SELECT sum(messages) FROM daily_counts") == 16 - len(poisons)

    await accept(sql)
    for letter in bodies:
        for step in range(10):
            steps.left = step
            try:
                await desk_of(hybrid).retry(letter.id, by="test")
            except Died:
                continue
            except DeadLetterNotFound:
                # It died after the last step.
                break
            break
    steps.left = 1000
    assert await archived(sql) == texts == await shown(hybrid)
    assert await sql.fetchval("SELECT sum(messages) FROM daily_counts") == 20
    assert (await hybrid.store.sessions.get(ref())).message_count == 12
    assert min(await lifetimes(redis)) > 0
    await nothing_is_left_of_letters(redis)


class Died(Exception):  # What happened to the process.
    pass


class Steps:
    """Ends a process before or after one of its calls of the stores that change something."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, after: bool) -> None:
        self.left = 1000
        self._after = after
        for owner, name in (
            (PostgresArchiveWriter, "write"),
            (RedisJournal, "acknowledge"),
            (RedisDeadLetters, "bury"),
            (RedisDeadLetters, "release"),
        ):
            monkeypatch.setattr(owner, name, self._dying(getattr(owner, name)))

    def _dying(self, call: Any) -> Any:
        async def dying(*words: Any) -> Any:
            if not self._after and self._dies():
                raise Died
            result = await call(*words)
            if self._after and self._dies():
                raise Died
            return result

        return dying

    def _dies(self) -> bool:
        self.left -= 1
        return self.left < 0


@pytest.mark.usefixtures("picky")
async def test_two_flushers_make_one_letter_of_an_entry(settings, hybrid, sql):
    for n in range(30):
        await append(hybrid, str(n), POISON, at=ref(f"s{n % 5}"))
    clock, recorder = SystemClock(), Recorder()
    async with (
        open_flusher(settings, clock=clock, observer=recorder) as (one, _),
        open_flusher(settings, clock=clock, observer=recorder) as (two, _),
    ):
        for flusher in (one, two):
            flusher._ownership._owned = list(range(16))
            flusher._ownership._valid_until = float("inf")
        await asyncio.gather(*(drained(flusher) for flusher in (one, two, one, two)))
    assert await entries(hybrid) == 0
    assert len(await letters(hybrid)) == 30
    assert await sql.fetchval("SELECT count(*) FROM messages") == 30


async def drained(flusher: Flusher) -> None:
    while await flusher.flush_once():
        pass


@pytest.mark.parametrize(
    "fault",
    [
        "RAISE EXCEPTION USING ERRCODE = '53100'",  # The disk is full.
        "RAISE EXCEPTION USING ERRCODE = '53200'",  # Out of memory.
        "RAISE EXCEPTION USING ERRCODE = '57014'",  # The statement's time is over.
        "RAISE EXCEPTION USING ERRCODE = '25006'",  # Read only.
        "RAISE EXCEPTION USING ERRCODE = '40P01'",  # A deadlock.
        "RAISE EXCEPTION USING ERRCODE = '40001'",
        "RAISE EXCEPTION USING ERRCODE = '55P03'",  # A lock was not to be had.
        "RAISE EXCEPTION USING ERRCODE = '42703'",  # A column is missing.
        "RAISE EXCEPTION USING ERRCODE = '42P01'",  # A table is.
        "RAISE EXCEPTION USING ERRCODE = '42501'",  # A right is.
        "RAISE EXCEPTION USING ERRCODE = '08006'",
        "RAISE EXCEPTION USING ERRCODE = 'XX000'",
        "RAISE EXCEPTION USING ERRCODE = '23505'",
        "PERFORM pg_terminate_backend(pg_backend_pid())",
        "PERFORM pg_sleep(3)",
    ],
)
async def test_what_is_not_of_the_content_makes_no_letter(settings, sql, fault):
    await sql.execute(
        f"CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN {fault};"
        " RETURN NEW; END$$;"
        "CREATE TRIGGER fail BEFORE INSERT ON messages FOR EACH ROW EXECUTE FUNCTION fail()"
    )
    hurried = msgspec.structs.replace(settings, database_timeout_seconds=0.5)
    async with kept(hurried) as hybrid:
        await append(hybrid, "a", "b")
        for _ in range(4):
            with pytest.raises(ArchiveUnavailable):
                await hybrid.flush()
        assert await letters(hybrid) == []
        assert await entries(hybrid) == 2
        await sql.execute("DROP TRIGGER fail ON messages")
        await hybrid.flush()
    assert await archived(sql) == ["a", "b"]


@pytest.mark.usefixtures("picky")
async def test_a_fault_while_the_entry_is_looked_for_makes_no_letter(hybrid, sql, monkeypatch):
    await append(hybrid, "a", POISON, "b")
    write, calls = PostgresArchiveWriter.write, []

    async def failing(writer, batch):
        calls.append(len(batch.entries))
        if len(batch.entries) == 1:
            raise ArchiveUnavailable("The archive did not answer in time.")
        return await write(writer, batch)

    with monkeypatch.context() as patched:
        patched.setattr(PostgresArchiveWriter, "write", failing)
        with pytest.raises(ArchiveUnavailable):
            await hybrid.flush()
    assert 1 in calls
    assert await letters(hybrid) == []
    await hybrid.flush()
    assert len(await letters(hybrid)) == 1
    assert await shown(hybrid) == ["a", POISON, "b"]


async def test_a_refused_deletion_is_never_moved_aside_and_others_flow_on(hybrid, sql):
    await append(hybrid, "a")
    await append(hybrid, "x", at=ref("elsewhere"))
    await hybrid.flush()
    await sql.execute("ALTER TABLE sessions ADD CONSTRAINT picky CHECK (NOT deleted)")
    await hybrid.store.sessions.delete(ref())
    for n in range(30):
        await append(hybrid, str(n), at=ref(f"s{n}"))
    await hybrid.flush()
    left = await hybrid.store.journal.backlog(range(16)) if hybrid.store.journal else []
    assert {shard.shard for shard in left if shard.entries} == {Keys(16).shard(ref())}
    assert await letters(hybrid) == []
    assert [one.outcome for one in hybrid.recorder.of(Buried)] == ["kept"]
    assert [one.reason for one in hybrid.recorder.of(FlushFailed)] == ["ShardStuck"]
    # It is let be for a while, and costs the others nothing.
    await append(hybrid, "y", at=ref("elsewhere"))
    await hybrid.flush()
    assert await archived(sql, ref("elsewhere")) == ["x", "y"]

    await sql.execute("ALTER TABLE sessions DROP CONSTRAINT picky")
    await eventually(lambda: _flushed(hybrid), within_seconds=10)
    with pytest.raises(SessionNotFound):
        await hybrid.store.sessions.get(ref())


async def _flushed(hybrid: Kept) -> bool:
    await hybrid.flush()
    return await entries(hybrid) == 0


@pytest.mark.usefixtures("picky")
async def test_past_their_limit_the_shard_waits_and_nothing_is_lost(settings, sql):
    few = msgspec.structs.replace(settings, dead_letters_max=2)
    async with kept(few) as hybrid:
        texts = ["a", f"{POISON}1", f"{POISON}2", f"{POISON}3", "b"]
        await append(hybrid, *texts)
        await hybrid.flush()
        assert (len(await letters(hybrid)), await entries(hybrid)) == (2, 2)
        assert [one.outcome for one in hybrid.recorder.of(Buried)] == ["buried", "buried", "full"]
        assert await shown(hybrid) == texts
        assert await archived(sql) == ["a"]
        await desk_of(hybrid).drop((await letters(hybrid))[0].id, by="test")
        await eventually(lambda: _flushed(hybrid), within_seconds=10)
        assert await archived(sql) == ["a", "b"]
        assert await shown(hybrid) == ["a", f"{POISON}2", f"{POISON}3", "b"]


@pytest.mark.usefixtures("picky")
async def test_letters_count_as_backlog(settings):
    small = msgspec.structs.replace(settings, journal_backlog_max=4, journal_backlog_bytes_max=3000)
    async with kept(small) as hybrid:
        ids = (await append(hybrid, *([POISON] * 3))).ids
        await hybrid.flush()
        same_shard = ref("other")
        await append(hybrid, "a", at=same_shard)
        with pytest.raises(BacklogFull):
            await append(hybrid, "b", at=same_shard)
        await hybrid.flush()
        await append(hybrid, "b")
        # What stands behind a letter in the tail counts as well.
        await hybrid.flush()
        with pytest.raises(BacklogFull):
            await append(hybrid, "b")
        for letter_id in ids:
            await desk_of(hybrid).drop(letter_id, by="test")
        [large] = (await append(hybrid, POISON + "x" * 2000)).ids
        await hybrid.flush()
        with pytest.raises(BacklogFull):
            await append(hybrid, "x" * 1000)
        await desk_of(hybrid).drop(large, by="test")
        await append(hybrid, "x" * 1000)


COST = TurnCost(model="m", input_tokens=TOO_MANY, output_tokens=1)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (encode_body(MessageBody(role="user", content="a", cost=COST)), "22000"),
        (b'{"role":"user","content":"a"', "22P02"),
        (b'{"role":"user","x":"\xff"}', "22021"),
        (b'{"role":"user","x":' + b"[" * 500 + b"1" + b"]" * 500 + b"}", None),
        (b'{"role":"user","x":' + b"[" * 50_000 + b"1" + b"]" * 50_000 + b"}", "undecodable"),
        (b'{"role":"user","content":' + b"[" * 50_000 + b"]" * 50_000 + b"}", "54001"),
        (b"not ours", "undecodable"),
    ],
)
async def test_what_postgresql_or_its_client_refuses(hybrid, sql, body, reason):
    """As a fault of ours would bring it into the journal, past the front door."""
    await append(hybrid, "a")
    await hybrid.store.transcripts.append(Append(ref=ref(), bodies=(body,)))
    await append(hybrid, "b")
    await hybrid.flush()
    assert await entries(hybrid) == 0
    assert [letter.reason for letter in await letters(hybrid)] == ([reason] if reason else [])
    assert (await archived(sql))[0] == "a"
    assert (await archived(sql))[-1] == "b"
    for letter in await letters(hybrid):
        await desk_of(hybrid).drop(letter.id, by="test")
        assert await shown(hybrid) == ["a", "b"]


async def test_what_cannot_be_read_is_put_aside(hybrid, redis, sql):
    await append(hybrid, "a")
    journal = Keys(16).journal(Keys(16).shard(ref()))
    await redis.xadd(journal, {"k": "m", "b": "?"})
    await redis.xadd(
        journal, {"k": "m", "t": "default", "s": b"\xff", "u": "", "r": "1", "b": "{}"}
    )
    fields = {"k": "m", "t": "default", "s": "s", "u": "", "r": "1", "b": "no message"}
    await redis.xadd(journal, fields)  # pyright: ignore[reportArgumentType]  # a narrower dict
    await append(hybrid, "b")
    await hybrid.flush()
    assert await archived(sql) == ["a", "b"]
    found = await letters(hybrid)
    reasons = [(letter.reason, letter.entry is not None) for letter in found]
    assert reasons == [("unreadable", False), ("unreadable", False), ("undecodable", True)]
    assert await desk_of(hybrid).retry(found[0].id, by="test") == "unreadable"
    assert await desk_of(hybrid).retry(found[2].id, by="test") == "undecodable"
    for letter in found:
        await desk_of(hybrid).drop(letter.id, by="test")
    assert await shown(hybrid) == ["a", "b"]
    await nothing_is_left_of_letters(redis)


async def test_an_entry_of_another_release_waits_for_it(hybrid, redis, sql):
    await append(hybrid, "a")
    journal = Keys(16).journal(Keys(16).shard(ref()))
    await redis.xadd(journal, {"k": "z", "t": "default", "s": "s", "u": "", "r": "1", "b": "{}"})
    await append(hybrid, "b")
    await append(hybrid, "c", at=ref("elsewhere"))
    await hybrid.flush()
    await hybrid.flush()
    assert await archived(sql) == ["a"]
    assert await archived(sql, ref("elsewhere")) == ["c"]
    assert (await entries(hybrid), await letters(hybrid)) == (2, [])
    assert [one.reason for one in hybrid.recorder.of(FlushFailed)] == ["ShardStuck"]


@asynccontextmanager
async def retaining(hybrid: Kept, settings: Settings) -> AsyncGenerator[Retaining]:
    door = PostgresDoor(settings.database_url or "", ArchiveLimits(), name="t", observer=Recorder())
    erasure: Any = hybrid.store.erasure
    hot = RedisRetention(erasure._hot._door, erasure._hot._arguments)
    yield Retaining(PostgresRetention(door), hot, stopped=lambda: False)
    await door.close()


@pytest.mark.usefixtures("picky")
async def test_retention_takes_letters_that_are_old(hybrid, settings, redis):
    ids = (await append(hybrid, "a", POISON, "b", POISON)).ids
    await hybrid.flush()
    async with retaining(hybrid, settings) as retention:
        await retention.run(ids[2])
    # Nothing in the archive reaches the first letter.
    assert await desk_of(hybrid).drop_before(ids[2], by="retention") == 1
    assert await shown(hybrid) == ["b", POISON]
    assert [letter.id for letter in await letters(hybrid)] == [ids[3]]
    assert max(await lifetimes(redis)) == -1
    assert await desk_of(hybrid).drop_before(HIGHEST_ID, by="retention") == 1
    assert await shown(hybrid) == ["b"]
    assert min(await lifetimes(redis)) > 0
    await nothing_is_left_of_letters(redis)


@pytest.mark.usefixtures("picky")
async def test_retention_takes_letters_among_what_it_takes(hybrid, settings, redis, sql):
    ids = (await append(hybrid, "a", POISON, "b", POISON, "c")).ids
    await hybrid.flush()
    async with retaining(hybrid, settings) as retention:
        await retention.run(ids[3])
    assert [letter.id for letter in await letters(hybrid)] == [ids[3]]
    assert await shown(hybrid) == [POISON, "c"]
    await accept(sql)
    assert await desk_of(hybrid).retry(ids[3], by="test") is None
    assert await shown(hybrid) == [POISON, "c"] == await archived(sql)
    await nothing_is_left_of_letters(redis)
