"""The hybrid store against a model of plain lists, under random histories.

Every step is one action on a few sessions or one event of the two tiers: a flush of a few entries,
a crash between commit and trim, the eviction of flushed keys, the loss of a flushed Redis, a lost
reply. After each step the store must answer as the model does. Unlike the plain store in memory,
with which test_hybrid_model compares it, the model shares no rules with the service, and it looks
behind the store, at Redis and the archive. A failing run names its seed and its last actions.
"""

import asyncio
import random
import secrets
from collections.abc import AsyncGenerator
from typing import Any

import asyncpg
import msgspec
import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from service.adapters.redis.client import RedisDoor
from service.adapters.tokens.vocabularies import Vocabularies
from service.bootstrap.ambient import SystemClock
from service.bootstrap.flushers import open_flusher
from service.bootstrap.stores import Store
from service.core.counting import Counting
from service.core.import_lines import ImportLine, Numbered
from service.core.importing import Importing, ImportLimits
from service.domain.context import ContextOptions, Need
from service.domain.errors import (
    PreconditionFailed,
    RequestRunning,
    SessionBusy,
    SessionExists,
    SessionNotFound,
)
from service.domain.ids import MessageId, TurnId
from service.domain.messages import Role
from service.domain.sessions import SessionDocument, SessionRef
from service.ports import (
    Append,
    Begin,
    Begun,
    Create,
    Finish,
    Import,
    Once,
    PageQuery,
    Replayed,
)
from tests.support.histories import (
    ASKED,
    SESSIONS,
    SHARDS,
    Line,
    Reader,
    Tiers,
    Told,
    check_shown,
    history_needed,
)
from tests.support.stores import Recorder, kept, said

STEPS = 300
SEEDS = [0, 1, 2, 3, 10, 24, 25, 26, 157]
ROLES: list[Role] = ["user", "assistant", "user", "assistant", "user", "system", "developer"]
USERS = [None, None, "ada", "bob"]
NOBODYS_ID = MessageId("00000000-0000-7000-8000-000000000000")
CONTEXTS = [
    None,
    ContextOptions(strategy="buffer"),
    ContextOptions(strategy="window", last=3),
    ContextOptions(strategy="tokens", max_tokens=100),
]


@pytest.fixture
async def redis(redis_url) -> AsyncGenerator[Redis]:
    async with Redis.from_url(redis_url, protocol=2) as client:
        yield client


@pytest.fixture
async def archive(database_url) -> AsyncGenerator[asyncpg.Connection]:
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


class History:
    """The store, its tiers, what it was told so far, and one random source."""

    def __init__(self, seed: int, store: Store, tiers: Tiers) -> None:
        self.random = random.Random(seed)
        self.store = store
        self.tiers = tiers
        self.told: dict[SessionRef, Told] = {}
        self.reader = Reader(store, self.told, self.random)
        self.keyed: list[tuple[Append, tuple[MessageId, ...]]] = []
        self.open: dict[SessionRef, Begin] = {}
        """Turns whose end was not asked for yet, also where their lease is gone by now."""
        self.begun: dict[TurnId, tuple[Begin, MessageId]] = {}
        """Turns that have not finished, with the ids of their user messages."""
        self.texts = 0
        self.actions: list[str] = []
        self.forgotten: list[tuple[SessionRef, str]] = []
        limits = ImportLimits(message_bytes_max=1000, line_bytes_max=1000, bytes_max=100_000)
        self.importing = Importing(store.imports, Counting(Vocabularies(), model="m"), limits)

    async def run(self) -> None:
        actions = [
            *(8 * [self.append]),
            self.repeat,
            *(3 * [self.clear, self.delete, self.create]),
            self.replace,
            *(2 * [self.begin]),
            self.begin_again,
            *(2 * [self.end_turn]),
            self.crowd,
            *(4 * [self.import_past]),
            *(4 * [self.flush_part]),
            self.flush_all,
            *(4 * [self.crash]),
            self.evict,
            self.lose_redis,
            *(2 * [self.lose_reply]),
        ]
        for _ in range(STEPS):
            action = self.random.choice(actions)
            self.actions.append(action.__name__)
            await action()
            for _ in range(3):
                await self.reader.check()
            if self.random.random() < 0.1:
                await self.reader.check_listing()
            await self.tiers.check_redis()
        await self.tiers.check_archive(self.told)

    def new_text(self) -> str:
        self.texts += 1
        return f"m{self.texts}"

    @property
    def ref(self) -> SessionRef:
        return self.random.choice(SESSIONS)

    # --- actions

    async def append(self) -> None:
        ref, choose = self.ref, self.random
        count = choose.choice([1, 1, 2, 3, 12])
        spoken: list[tuple[Role, str]] = [
            (choose.choice(ROLES), self.new_text()) for _ in range(count)
        ]
        user = choose.choice(USERS)
        key = spoken[0][1] if choose.random() < 0.4 else None
        told = self.told.get(ref, Told())
        condition: MessageId | msgspec.UnsetType | None = msgspec.UNSET
        if choose.random() < 0.2:
            condition = told.last_id if choose.random() < 0.7 else NOBODYS_ID
        command = Append(
            ref=ref,
            bodies=tuple(said(text, role) for role, text in spoken),
            user_id=user,
            once=Once(operation="append", key=key, fingerprint="f") if key else None,
            if_last_id=condition,
        )
        refusals: list[type[Exception]] = []
        if told.hides_from(user):
            refusals.append(SessionNotFound)
        if condition not in (msgspec.UNSET, told.last_id):
            refusals.append(PreconditionFailed)
        if refusals:
            with pytest.raises(tuple(refusals)) as refused:
                await self.store.transcripts.append(command)
            if isinstance(refused.value, PreconditionFailed):
                assert refused.value.last_id == told.last_id
            return

        ids = (await self.store.transcripts.append(command)).ids
        told.user = told.user or user
        lines: list[Line] = [
            (one, role, text) for one, (role, text) in zip(ids, spoken, strict=True)
        ]
        told.lines += lines
        self.told[ref] = told
        if key:
            self.keyed.append((command, ids))

    async def import_past(self) -> None:
        """Into an empty session, beside other actions and events; one above it is refused."""
        ref, choose = self.ref, self.random
        told, user = self.told.get(ref, Told()), choose.choice(USERS)
        spoken: list[tuple[Role, str]] = [
            (choose.choice(ROLES), self.new_text()) for _ in range(choose.choice([2, 40]))
        ]
        # What is forgotten and not archived yet is waited for, and nobody flushes here.
        await self.flush_all()
        may = not told.hides_from(user) and not told.lines
        before = len(self.forgotten)
        try:
            await self.importing.run(Import(ref=ref, user_id=user), self.import_lines(spoken))
        except SessionNotFound:
            assert told.hides_from(user) or self.told.get(ref, Told()).hides_from(user)
        except PreconditionFailed:
            assert not may or ref in {one for one, _ in self.forgotten[before:]}
        else:
            assert may
            since = {what for one, what in self.forgotten[before:] if one == ref}
            await self.see_imported(ref, user, spoken, since)

    async def import_lines(self, spoken: list[tuple[Role, str]]) -> AsyncGenerator[Numbered]:
        beside = [self.append, self.clear, self.delete, self.create, self.evict, self.flush_all]
        for place, (role, text) in enumerate(spoken):
            if place == 1:
                for action in self.random.sample(beside, self.random.choice([0, 0, 1, 2])):
                    self.actions.append(f"({action.__name__})")
                    await action()
            yield Numbered(place + 1, 1, ImportLine(role=role, content=text))

    async def see_imported(
        self, ref: SessionRef, user: str | None, spoken: list[tuple[Role, str]], since: set[str]
    ) -> None:
        """Below what was said beside it, and gone with what was forgotten beside it."""
        if "deleted" in since:
            return
        told = self.told.setdefault(ref, Told())
        told.user = told.user or user
        if "cleared" in since:
            return
        page = await self.store.transcripts.page(ref, PageQuery(limit=len(spoken)))
        assert [(message.role, message.content) for message in page] == spoken
        lines: list[Line] = [
            (message.id, role, text) for message, (role, text) in zip(page, spoken, strict=True)
        ]
        told.lines = lines + told.lines

    async def repeat(self) -> None:
        """An append of any age, whatever became of its session, is answered as it was then."""
        if not self.keyed:
            return
        command, ids = self.random.choice(self.keyed)
        again = await self.store.transcripts.append(command)
        assert (again.ids, again.replayed) == (ids, True)

    async def clear(self) -> None:
        ref = self.ref
        if ref not in self.told:
            with pytest.raises(SessionNotFound):
                await self.store.transcripts.clear(ref)
            return
        await self.store.transcripts.clear(ref)
        self.forgotten.append((ref, "cleared"))
        self.told[ref].lines = []
        self.told[ref].lease = None

    async def delete(self) -> None:
        ref = self.ref
        if ref not in self.told:
            with pytest.raises(SessionNotFound):
                await self.store.sessions.delete(ref)
            return
        await self.store.sessions.delete(ref)
        self.forgotten.append((ref, "deleted"))
        del self.told[ref]

    def new_document(self) -> SessionDocument:
        return SessionDocument(
            metadata=self.random.choice([None, {"n": self.texts}]),
            context=self.random.choice(CONTEXTS),
            ttl_seconds=self.random.choice([None, 3600]),
        )

    async def create(self) -> None:
        ref, document, user = self.ref, self.new_document(), self.random.choice(USERS)
        command = Create(ref=ref, user_id=user, document=document)
        if ref in self.told:
            with pytest.raises(SessionExists):
                await self.store.sessions.create(command)
            return
        await self.store.sessions.create(command)
        self.told[ref] = Told(user=user, document=document)

    async def replace(self) -> None:
        ref, document = self.ref, self.new_document()
        if ref not in self.told:
            with pytest.raises(SessionNotFound):
                await self.store.sessions.replace(ref, SessionDocument(), document)
            return
        if self.random.random() < 0.2:
            other = SessionDocument(metadata={"no": "such"})
            assert not await self.store.sessions.replace(ref, other, document)
            return
        assert await self.store.sessions.replace(ref, self.told[ref].document, document)
        self.told[ref].document = document

    async def begin(self) -> None:
        ref, choose = self.ref, self.random
        text, user = self.new_text(), choose.choice(USERS)
        keyed = choose.random() < 0.5
        command = Begin(
            ref=ref,
            turn_id=TurnId(text),
            body=said(text),
            options=choose.choice(ASKED),
            user_id=user,
            once=Once(operation="chat", key=text, fingerprint="f") if keyed else None,
            lease_token=secrets.token_hex(8),
        )
        await self.take(command, earlier=None)

    async def begin_again(self) -> None:
        """A failed or interrupted keyed turn is taken up again."""
        keyed = [turn for turn in self.begun.values() if turn[0].once]
        if not keyed:
            return
        command, earlier = self.random.choice(keyed)
        command = msgspec.structs.replace(command, lease_token=secrets.token_hex(8))
        await self.take(command, earlier=earlier)

    async def take(self, command: Begin, *, earlier: MessageId | None) -> None:
        """Begin a turn; ``earlier`` is the user message of its first run, which may be gone."""
        told = self.told.get(command.ref, Told())
        refusals: list[type[Exception]] = []
        if told.lease:
            refusals += [SessionBusy, RequestRunning]
        if told.hides_from(command.user_id):
            refusals.append(SessionNotFound)
        if refusals:
            with pytest.raises(tuple(refusals)):
                await self.store.turns.begin(command)
            return

        begun = await self.store.turns.begin(command)
        assert isinstance(begun, Begun)
        before = list(told.lines)
        if earlier is not None and earlier in told.ids:
            assert begun.user_message_id == earlier
            before = before[: told.ids.index(earlier)]
        else:
            told.lines.append((begun.user_message_id, "user", command.turn_id))
        needed = history_needed(told.document, command.options)
        check_shown(begun.history, before, needed)
        told.user = told.user or command.user_id
        told.lease = command.lease_token
        self.told[command.ref] = told
        self.open[command.ref] = command
        self.begun.pop(command.turn_id, None)
        self.begun[command.turn_id] = command, begun.user_message_id

    async def end_turn(self) -> None:
        if not self.open:
            return
        command = self.open.pop(self.random.choice(sorted(self.open)))
        fails = self.random.random() < 0.3
        text = self.new_text()
        finish = Finish(
            ref=command.ref,
            turn_id=command.turn_id,
            lease_token=command.lease_token,
            body=None if fails else said(text, "assistant"),
            result=text.encode(),
            once=command.once,
        )
        told = self.told.get(command.ref)
        holder = told if told and told.lease == command.lease_token else None
        if fails:
            await self.store.turns.fail(finish)
        else:
            await self.finish(command, finish, text, holder)
            self.begun.pop(command.turn_id, None)
        if holder:
            holder.lease = None

    async def finish(self, command: Begin, finish: Finish, text: str, holder: Told | None) -> None:
        """Only the holder of the lease may answer; the end and its repeats are told alike."""
        finished = await self.store.turns.finish(finish)
        if holder:
            assert finished.outcome == "stored", finished
            assert finished.message_id is not None
            holder.lines.append((finished.message_id, "assistant", text))
        else:
            assert finished.outcome in ("cancelled", "lost"), finished
        assert await self.store.turns.finish(finish) == finished
        if holder and command.once:
            replay = await self.store.turns.begin(command)
            assert replay == Replayed(result=text.encode(), message_id=finished.message_id)

    async def crowd(self) -> None:
        """Calls at once; whatever their order is, nothing is lost or doubled."""
        ref = self.ref
        texts = [self.new_text() for _ in range(6)]
        transcripts = self.store.transcripts
        appends = asyncio.gather(
            *[transcripts.append(Append(ref=ref, bodies=(said(text),))) for text in texts]
        )
        reads = [
            transcripts.recent(ref, Need(last=self.random.choice([3, 30, None]))) for _ in range(3)
        ]
        others = asyncio.gather(self.flush_part(), *reads, self.flush_all())
        await asyncio.gather(appends, others)
        lines: list[Line] = [
            (one.ids[0], "user", text) for one, text in zip(appends.result(), texts, strict=True)
        ]
        self.told.setdefault(ref, Told()).lines += sorted(lines)

    # --- events

    async def flush_all(self) -> None:
        await self.tiers.flush_all()

    async def flush_part(self) -> None:
        await self.tiers.flush_some(self.random.randint(1, 9), acknowledged=True)

    async def crash(self) -> None:
        await self.tiers.flush_some(self.random.randint(1, 30), acknowledged=False)

    async def evict(self) -> None:
        await self.tiers.evict(self.random)
        # A session that lost some of its keys begins anew at its next read, without its lease.
        for ref in self.told:
            await self.store.transcripts.recent(ref, Need(last=1))
        await self.see_leases()

    async def lose_redis(self) -> None:
        """Flushed, Redis may lose everything: then also the calls that it would have repeated."""
        await self.flush_all()
        if self.random.random() < 0.5:
            await self.tiers.lose_everything_hot()
            self.keyed.clear()
            self.begun.clear()
        else:
            await self.tiers.lose_sessions()
        await self.see_leases()

    async def see_leases(self) -> None:
        """Which leases were among the lost keys only Redis knows."""
        for ref, told in self.told.items():
            told.lease = await self.tiers.lease(ref)

    async def lose_reply(self) -> None:
        """The next command of some action runs and its reply is lost."""
        outer = RedisDoor._command
        actions = [
            self.append,
            self.clear,
            self.delete,
            self.create,
            self.replace,
            self.begin,
            self.end_turn,
        ]
        with pytest.MonkeyPatch.context() as patch:

            async def command(door: RedisDoor, *words: Any) -> Any:
                patch.setattr(RedisDoor, "_command", outer)
                await outer(door, *words)
                raise RedisConnectionError("lost")

            patch.setattr(RedisDoor, "_command", command)
            await self.random.choice(actions)()


@pytest.mark.parametrize("seed", SEEDS)
async def test_the_hybrid_store_is_its_model(seed, hybrid_settings, redis, archive):
    settings = msgspec.structs.replace(
        hybrid_settings,
        hot_messages_max=20,
        journal_shards=SHARDS,
        flush_batch_max=1000,
        # No lease runs out by itself: the model has no clock.
        turn_lease_seconds=3600.0,
    )
    async with (
        kept(settings) as hybrid,
        open_flusher(settings, clock=SystemClock(), observer=Recorder()) as (flusher, ownership),
    ):
        history = History(seed, hybrid.store, Tiers(redis, archive, flusher, ownership))
        try:
            await history.run()
        except BaseException as error:
            error.add_note(f"The last actions: {' '.join(history.actions[-25:])}")
            raise
        finally:
            await ownership.give_up()
