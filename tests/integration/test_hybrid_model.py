"""The hybrid store against the plain store in memory: the same calls must have the same outcomes.

Between the calls the hybrid store is flushed, loses its archived hot state whole or in part as by
expiry and eviction, and its Redis is killed and started again. A failing run names its seed.
"""

import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import asyncpg
import msgspec
import pytest
from redis.asyncio import Redis

from service.dev.valkey import EmbeddedValkey
from service.domain.context import ContextOptions, Need
from service.domain.errors import ChatMemoryError, HotUnavailable
from service.domain.ids import MessageId, TurnId
from service.domain.messages import MessageBody, Role, encode_body
from service.domain.sessions import SessionDocument, SessionRef
from service.domain.summaries import Summary
from service.ports import (
    Append,
    Begin,
    Begun,
    Create,
    Finish,
    Once,
    PageQuery,
    Replayed,
    Resumption,
    SessionQuery,
)
from service.settings import Settings
from tests.support.histories import ASKED
from tests.support.polling import eventually
from tests.support.stores import Kept, kept, said

STEPS = 250
SESSIONS = [SessionRef("default", name) for name in ("a", "b", "c")]
USERS = [None, None, "ada", "eve"]
DOCUMENTS = [
    SessionDocument(),
    SessionDocument(metadata={"n": 1}),
    SessionDocument(context=ContextOptions(strategy="window", last=3)),
]


@pytest.fixture(scope="module")
async def valkey(tmp_path_factory) -> AsyncGenerator[EmbeddedValkey]:
    """A Redis of these tests' own, to be killed."""
    server = EmbeddedValkey(tmp_path_factory.mktemp("valkey"), appendfsync="everysec")
    await server.start()
    yield server
    await server.stop()


class Pair:
    """Both stores, what was said so far, and one random source."""

    def __init__(self, seed: int, hybrid: Kept, model: Kept, redis: Redis, valkey: EmbeddedValkey):
        self.random = random.Random(seed)
        self.hybrid = hybrid
        self.model = model
        self.redis = redis
        self.valkey = valkey
        self.said = 0
        self.calls = 0
        self.sql: asyncpg.Connection | None = None
        """Where some texts are refused by the archive."""

    async def both(self, call: Callable[[Kept], Awaitable[Any]]) -> None:
        """Make one call on both stores; their outcomes must be the same."""
        expected, found = await outcome(call, self.model), await outcome(call, self.hybrid)
        assert found == expected

    async def step(self) -> None:
        steps = [
            *(8 * [self.append]),
            *(6 * [self.read]),
            *(3 * [self.turn]),
            *(3 * [self.flush]),
            *(2 * [self.look]),
            self.failed_turn,
            *(2 * [self.tool_turn]),
            self.create,
            self.replace,
            self.clear,
            self.summarise,
            self.summarise,
            self.delete,
            self.list,
            self.evict,
            self.lose_all,
            *([self.retry] if self.sql else []),
        ]
        await self.random.choice(steps)()

    def new_text(self) -> str:
        self.said += 1
        poisoned = self.sql is not None and self.random.random() < 0.15
        return f"{'poison' if poisoned else 'm'}{self.said}"

    @property
    def ref(self) -> SessionRef:
        return self.random.choice(SESSIONS)

    async def append(self) -> None:
        role: Role = self.random.choice(["user", "assistant", "user", "system"])
        count = self.random.choice([1, 1, 2, 9])
        command = Append(
            ref=self.ref,
            bodies=tuple(said(self.new_text(), role) for _ in range(count)),
            user_id=self.random.choice(USERS),
            once=self.once("append"),
        )
        times = self.random.choice([1, 1, 2]) if command.once else 1
        for _ in range(times):

            async def call(kept: Kept) -> Any:
                return (await kept.store.transcripts.append(command)).replayed

            await self.both(call)

    async def read(self) -> None:
        ref, last = self.ref, self.random.choice([None, 1, 3, 8, 30])
        limit = self.random.choice([1, 4, 11, 1000])
        descending = self.random.random() < 0.5

        async def recent(kept: Kept) -> Any:
            found = await kept.store.transcripts.recent(ref, Need(last=last))
            texts = [m.content for m in found.messages], [m.content for m in found.pinned]
            summary = found.summary.text if found.summary else None
            return found.exists, found.user_id, found.document, summary, *texts

        async def pages(kept: Kept) -> Any:
            texts, cursor = [], None
            while True:
                query = PageQuery(
                    limit=limit,
                    descending=descending,
                    before=cursor if descending else None,
                    after=None if descending else cursor,
                )
                page = await kept.store.transcripts.page(ref, query)
                texts += [message.content for message in page]
                if len(page) < limit:
                    return texts
                cursor = page[-1].id

        await self.both(self.random.choice([recent, pages]))

    async def look(self) -> None:
        ref = self.ref

        async def call(kept: Kept) -> Any:
            session = await kept.store.sessions.get(ref)
            return session.user_id, session.document, session.message_count, bool(session.last_id)

        await self.both(call)

    async def list(self) -> None:
        user = self.random.choice(USERS)

        async def call(kept: Kept) -> Any:
            query = SessionQuery(tenant="default", limit=10, user_id=user)
            page = await kept.store.sessions.newest(query)
            return {(session.id, session.message_count) for session in page.items}

        await self.both(call)

    async def create(self) -> None:
        command = Create(
            ref=self.ref,
            user_id=self.random.choice(USERS),
            document=self.random.choice(DOCUMENTS),
            once=self.once("create"),
        )

        async def call(kept: Kept) -> Any:
            return (await kept.store.sessions.create(command)).replayed

        await self.both(call)

    async def replace(self) -> None:
        ref, old, new = self.ref, *self.random.choices(DOCUMENTS, k=2)
        if old != new:
            await self.both(lambda kept: kept.store.sessions.replace(ref, old, new))

    async def clear(self) -> None:
        ref = self.ref
        await self.both(lambda kept: kept.store.transcripts.clear(ref))

    async def summarise(self) -> None:
        """Up to some message, sometimes of a summary that is not the last one."""
        ref, place, stale = self.ref, self.random.randrange(40), self.random.random() < 0.2

        async def call(kept: Kept) -> Any:
            recent = await kept.store.transcripts.recent(ref, Need())
            ids = [message.id for message in recent.messages]
            if not ids:
                return None
            seen = recent.summary.through_id if recent.summary else None
            old = None if stale else seen
            through = ids[min(place, len(ids) - 1)]
            summary = Summary(text=str(place), from_id=ids[0], through_id=through, model="m")
            return await kept.store.sessions.summarise(ref, old, summary)

        await self.both(call)

    async def delete(self) -> None:
        ref = self.ref
        await self.both(lambda kept: kept.store.sessions.delete(ref))

    async def turn(self) -> None:
        begin, finish = self.new_turn(self.once("chat"))
        await self.both(lambda kept: run(kept, begin, finish))
        if begin.once and self.random.random() < 0.5:
            await self.both(lambda kept: run(kept, begin, finish))

    async def failed_turn(self) -> None:
        self.calls += 1
        begin, finish = self.new_turn(Once(operation="chat", key=str(self.calls), fingerprint="f"))

        async def fail(kept: Kept) -> Any:
            begun = await kept.store.turns.begin(begin)
            await kept.store.turns.fail(finish)
            return isinstance(begun, Begun)

        await self.both(fail)
        for _ in range(self.random.randrange(4)):
            await self.random.choice([self.append, self.flush, self.clear, self.delete])()
        await self.both(lambda kept: run(kept, begin, finish))

    async def tool_turn(self) -> None:
        """A turn that calls a tool and goes on with its result, whatever happens in between."""
        begin, finish = self.new_turn(self.once("chat"))
        called = msgspec.structs.replace(finish, asked=b"asked")
        await self.both(lambda kept: run(kept, begin, called))
        # Of each store its own: ids differ.
        calls: dict[str, MessageId | None] = {}
        for store in (self.hybrid, self.model):
            found = await store.store.turns.find(begin.ref, begin.turn_id)
            calls[store.name] = found.message_id if found else None
        body = encode_body(MessageBody(role="tool", content=self.new_text(), tool_call_id="c"))
        once = self.once("tool-results")
        steps = [self.append, self.clear, self.delete, self.lose_all, self.turn, *4 * [self.flush]]
        for _ in range(self.random.choice([1, 2, 2, 3])):
            for _ in range(self.random.choice([0, 0, 1, 2])):
                await self.random.choice(steps)()
            await self.both(self.going_on(begin, finish, body, calls, once))

    def going_on(
        self,
        begin: Begin,
        finish: Finish,
        body: bytes,
        calls: dict[str, MessageId | None],
        once: Once | None,
    ) -> Callable[[Kept], Awaitable[Any]]:
        self.calls += 1
        token, fails = f"results{self.calls}", self.random.random() < 0.3
        end = msgspec.structs.replace(
            finish, lease_token=token, once=once, resumed=True, result=token.encode()
        )

        async def call(kept: Kept) -> Any:
            resumption = Resumption(
                calls_id=calls[kept.name], bodies=(body,), fingerprint="r", asked=b"asked"
            )
            going = msgspec.structs.replace(
                begin, body=b"", user_id=None, once=once, lease_token=token, resumes=resumption
            )
            return await run(kept, going, end, fails=fails)

        return call

    def new_turn(self, once: Once | None) -> tuple[Begin, Finish]:
        self.calls += 1
        ref, name = self.ref, f"turn{self.calls}"
        begin = Begin(
            ref=ref,
            turn_id=TurnId(name),
            body=said(self.new_text()),
            options=self.random.choice(ASKED),
            user_id=self.random.choice(USERS),
            once=once,
            lease_token=name,
        )
        finish = Finish(
            ref=ref,
            turn_id=TurnId(name),
            lease_token=name,
            body=said(self.new_text(), "assistant"),
            result=name.encode(),
            once=once,
        )
        return begin, finish

    def once(self, operation: str) -> Once | None:
        if self.random.random() < 0.5:
            return None
        self.calls += 1
        return Once(operation=operation, key=str(self.calls), fingerprint="f")

    async def flush(self) -> None:
        await self.hybrid.flush()

    async def evict(self) -> None:
        """Lose some keys that may be lost: those with a lifetime, but for records of calls."""
        records = (b":once:", b":turn:")
        keys = [
            key
            async for key in self.redis.scan_iter("{cm:*")
            if not any(record in key for record in records)
        ]
        for key in self.random.sample(keys, k=len(keys) // 2):
            if await self.redis.pttl(key) > 0:
                await self.redis.delete(key)

    async def lose_all(self) -> None:
        """Everything archived expires at once."""
        await self.hybrid.flush()
        for pattern in ("*:head:*", "*:tail:*", "*:pins:*"):
            async for key in self.redis.scan_iter(pattern):
                mortal = await self.redis.pttl(key) > 0
                assert mortal or self.sql is not None
                if mortal:
                    await self.redis.delete(key)

    async def retry(self) -> None:
        """What was refused is mended, and some of it tried again; then it is refused once more."""
        desk, sql = self.hybrid.store.dead_letters, self.sql
        if desk is None or sql is None:
            raise AssertionError("there are no letters")
        await refuse_nothing(sql)
        letters = [letter.id async for letter in desk.walk()]
        for letter_id in self.random.sample(letters, k=(len(letters) + 1) // 2):
            assert await desk.retry(letter_id, by="test") is None
        await refuse_some(sql)

    async def is_flushed(self) -> bool:
        await self.flush()
        journal = self.hybrid.store.journal
        left = await journal.backlog(range(16)) if journal else []
        return not any(shard.entries for shard in left)

    async def retry_all(self) -> None:
        desk = self.hybrid.store.dead_letters
        if desk is None or self.sql is None:
            raise AssertionError("there are no letters")
        await refuse_nothing(self.sql)
        # A shard may have stood still at a clear of a session whose row was refused.
        await eventually(self.is_flushed, within_seconds=10)
        for letter_id in [letter.id async for letter in desk.walk()]:
            assert await desk.retry(letter_id, by="test") is None
        self.sql = None
        await self.lose_all()

    async def restart_redis(self) -> None:
        await self.valkey.kill()
        await self.valkey.start()

        async def back() -> bool:
            try:
                await self.hybrid.flush()
            except HotUnavailable:
                return False
            return True

        await eventually(back, within_seconds=10)


async def refuse_some(sql: asyncpg.Connection) -> None:
    await sql.execute(
        "ALTER TABLE messages ADD CONSTRAINT picky"
        " CHECK (body->>'content' NOT LIKE 'poison%') NOT VALID;"
        "ALTER TABLE sessions ADD CONSTRAINT picky CHECK (document->'metadata'->>'n' <> '1'"
        " AND summary->>'text' NOT LIKE '%3') NOT VALID"
    )


async def refuse_nothing(sql: asyncpg.Connection) -> None:
    await sql.execute("ALTER TABLE messages DROP CONSTRAINT picky")
    await sql.execute("ALTER TABLE sessions DROP CONSTRAINT picky")


async def outcome(call: Callable[[Kept], Awaitable[Any]], kept: Kept) -> Any:
    try:
        return await call(kept)
    except ChatMemoryError as error:
        return type(error)


async def run(kept: Kept, begin: Begin, finish: Finish, *, fails: bool = False) -> Any:
    begun = await kept.store.turns.begin(begin)
    if isinstance(begun, Replayed):
        return begun.result
    shown = [message.content for message in begun.history.messages]
    pinned = [message.content for message in begun.history.pinned]
    turns = kept.store.turns
    finished = await (turns.fail if fails else turns.finish)(finish)
    return shown, pinned, begun.history.document, finished.outcome


@pytest.mark.parametrize("seed", range(8))
async def test_the_hybrid_store_behaves_like_the_plain_one(seed, database_url, valkey):
    hybrid_settings = Settings(database_url=database_url, redis_url=valkey.url, hot_messages_max=10)
    async with (
        Redis.from_url(valkey.url, protocol=2) as redis,
        kept(Settings(store="memory")) as model,
    ):
        await redis.flushdb()
        async with kept(hybrid_settings) as hybrid:
            pair = Pair(seed, hybrid, model, redis, valkey)
            for step in range(STEPS):
                await pair.step()
                if step == STEPS // 2:
                    await pair.restart_redis()
            for _ in range(10):
                await pair.read()
                await pair.look()


@pytest.mark.parametrize("seed", range(8))
async def test_it_does_so_too_where_the_archive_refuses_some_messages(seed, database_url, valkey):
    """Nobody but the operators sees it: neither while they are letters nor after."""
    settings = Settings(database_url=database_url, redis_url=valkey.url, hot_messages_max=10)
    sql = await asyncpg.connect(database_url)
    await refuse_some(sql)
    async with (
        Redis.from_url(valkey.url, protocol=2) as redis,
        kept(Settings(store="memory")) as model,
    ):
        await redis.flushdb()
        async with kept(settings) as hybrid:
            pair = Pair(seed, hybrid, model, redis, valkey)
            pair.sql = sql
            for step in range(STEPS):
                await pair.step()
                if step == STEPS // 2:
                    await pair.restart_redis()
            await pair.retry_all()
            assert [key async for key in redis.scan_iter("*:letter:*")] == []
            assert [key async for key in redis.scan_iter("*:dead:*")] == []
            for _ in range(10):
                await pair.read()
                await pair.look()
    await sql.close()
