"""What random histories of the hybrid store need: the model, both tiers, and a reader."""

import random
from collections.abc import Sequence

import asyncpg
import msgspec
import pytest
from redis.asyncio import Redis

from service.adapters.redis.keys import Keys
from service.bootstrap.stores import Store
from service.core.flushing import Flusher, ShardOwnership
from service.domain.context import ContextOptions, Need
from service.domain.errors import SessionNotFound
from service.domain.ids import MessageId
from service.domain.journal import Acknowledgement, Batch, Entry
from service.domain.messages import Content, Message, Role
from service.domain.sessions import SessionDocument, SessionRef
from service.ports import PageQuery, Recent, SessionQuery

SHARDS = 3
SESSIONS = [SessionRef("default", name) for name in ("a", "b:c")]
PINNED = ("system", "developer")

Line = tuple[MessageId, Role, str]
"""A message as the model keeps it: id, role and text."""


class Told(msgspec.Struct):
    """A session as it has to be."""

    user: str | None = None
    document: SessionDocument = SessionDocument()
    lines: list[Line] = []
    lease: str | None = None

    @property
    def ids(self) -> list[MessageId]:
        return [line[0] for line in self.lines]

    @property
    def last_id(self) -> MessageId | None:
        return self.lines[-1][0] if self.lines else None

    def hides_from(self, user: str | None) -> bool:
        return user is not None and self.user not in (None, user)


def as_lines(messages: Sequence[Message]) -> list[tuple[MessageId, Role, Content]]:
    return [(message.id, message.role, message.content) for message in messages]


def newest(lines: list[Line], last: int | None) -> list[Line]:
    """The end of a session with so many lines that are not pinned, counted without the service."""
    if last is None:
        return lines
    spoken = 0
    for place in range(len(lines) - 1, -1, -1):
        spoken += lines[place][1] not in PINNED
        if spoken == last:
            return lines[place:]
    return lines


def pinned_before(lines: list[Line], shown: list[Line]) -> list[Line]:
    """The pinned lines older than those shown; all of them where nothing is shown."""
    return [line for line in lines if line[1] in PINNED and (not shown or line[0] < shown[0][0])]


ASKED = [
    ContextOptions(),
    ContextOptions(strategy="buffer"),
    *(ContextOptions(strategy="window", last=last) for last in (1, 5, 40)),
    ContextOptions(last=2),
    ContextOptions(strategy="window"),
    ContextOptions(strategy="tokens", max_tokens=100),
    ContextOptions(strategy="summary"),
]
"""What callers of turns ask for."""


def history_needed(document: SessionDocument, asked: ContextOptions) -> int | None:
    """How many messages a turn must be shown; None for all.

    The messages of these histories carry no counts, so that no budget is ever exhausted.
    """
    own = document.context or ContextOptions()
    strategy = asked.strategy or ("window" if asked.last else own.strategy) or "window"
    if strategy != "window":
        return None
    return asked.last or own.last or 50


class Tiers:
    """Both tiers seen from behind the store: what befalls them, and what they must hold."""

    def __init__(
        self,
        redis: Redis,
        archive: asyncpg.Connection,
        flusher: Flusher,
        ownership: ShardOwnership,
    ) -> None:
        self.redis = redis
        self.archive = archive
        self.flusher = flusher
        self.ownership = ownership
        self.keys = Keys(SHARDS)

    # --- what befalls them

    async def flush_all(self) -> None:
        await self.ownership.renew()
        while await self.flusher.flush_once():
            pass

    async def flush_some(self, count: int, *, acknowledged: bool) -> None:
        """Commit the oldest entries of every shard.

        Without the acknowledgement they stay in the journal, as when a flusher dies in between.
        """
        runs = await self.journal(count)
        entries = tuple(entry for run in runs for entry in run)
        if not entries:
            return
        await self.flusher._carrier._writer.write(Batch(entries=entries))
        for shard, run in enumerate(runs):
            if run and acknowledged:
                acknowledgement = Acknowledgement(entries=tuple(run))
                await self.flusher._journal.acknowledge(shard, acknowledgement)

    async def evict(self, choose: random.Random) -> None:
        """Lose what volatile-lru may take, keys with a lifetime, but for the records of calls."""
        # Redis scans in an order that no seed decides; sorted keys make a history repeatable.
        keys: list[bytes] = sorted({key async for key in self.redis.scan_iter("*")})
        kept = (b":once:", b"owner", b"flushers")
        lost = [key for key in keys if not any(part in key for part in kept)]
        mortal = [key for key in lost if await self.redis.pttl(key) > 0]
        for key in mortal:
            if choose.random() < 0.5:
                await self.redis.delete(key)

    async def lose_everything_hot(self) -> None:
        await self.redis.flushdb()

    async def lose_sessions(self) -> None:
        """Lose the hot state of all sessions, but neither the journal nor the records of calls."""
        async for key in self.redis.scan_iter("*"):
            if any(part in key for part in (b":head:", b":tail:", b":pins:")):
                await self.redis.delete(key)

    # --- what they hold

    async def journal(self, count: int) -> list[list[Entry]]:
        """The oldest entries of every shard."""
        runs = await self.flusher._journal.head([(shard, count) for shard in range(SHARDS)])
        return [[entry for entry in run if isinstance(entry, Entry)] for run in runs]

    async def lease(self, ref: SessionRef) -> str | None:
        lease: bytes | None = await self._field(self.keys.session(ref).head, "lease")
        return lease.decode() if lease else None

    async def check_redis(self) -> None:
        """Counters, lifetimes and the index must agree with the journal.

        Only then can no unflushed message expire and no counter refuse or hide a write for ever.
        """
        counts = dict.fromkeys(SESSIONS, 0)
        for shard, run in enumerate(await self.journal(100_000)):
            for entry in run:
                counts[entry.ref] += 1
            stored = int(await self._field(self.keys.shard_counters(shard), "bytes") or 0)
            assert stored == sum(len(entry.body) for entry in run)
        for ref, count in counts.items():
            names = self.keys.session(ref)
            assert int(await self._field(names.head, "unflushed") or 0) == count
            ttls = [await self.redis.pttl(key) for key in (names.head, names.tail, names.pins)]
            # Redis says -1 for a key that lives for ever and -2 for none.
            assert all(ttl in (-1, -2) if count else ttl != -1 for ttl in ttls), (ref, ttls)
            listed = await self.redis.zscore(names.index, ref.session_id)
            assert (listed is not None) == bool(count)

    async def check_archive(self, told: dict[SessionRef, Told]) -> None:
        """After a whole flush the archive has exactly what was told, and nothing of the rest."""
        await self.flush_all()
        rows = await self.archive.fetch(
            """
            SELECT s.session_id, s.user_id, s.message_count, s.last_id::text,
                   s.archived_through::text, s.deleted,
                   array(SELECT m.id::text FROM messages m
                         WHERE m.session_key = s.session_key ORDER BY m.id) AS ids
            FROM sessions s
            """
        )
        found = {row["session_id"]: row for row in rows}
        for ref in SESSIONS:
            row = found.get(ref.session_id)
            if ref in told:
                assert row is not None
                _check_row(row, told[ref])
            elif row is not None:
                assert (row["deleted"], row["ids"], row["message_count"]) == (True, [], 0)

    async def _field(self, key: str, field: str) -> bytes | None:
        return await self.redis.execute_command("HGET", key, field)


def _check_row(row: asyncpg.Record, told: Told) -> None:
    assert not row["deleted"]
    assert row["user_id"] == told.user
    assert (row["ids"], row["message_count"]) == (told.ids, len(told.lines))
    assert (row["last_id"], row["archived_through"]) == (told.last_id, told.last_id)


class Reader:
    """Looks at the store as callers do, by one of its many ways, and compares with the model."""

    def __init__(self, store: Store, told: dict[SessionRef, Told], choose: random.Random) -> None:
        self.store = store
        self.told = told
        self.random = choose

    async def check(self) -> None:
        ref = self.random.choice(SESSIONS)
        told = self.told.get(ref)
        if told is None:
            assert not (await self.store.transcripts.recent(ref, Need(last=5))).exists
            with pytest.raises(SessionNotFound):
                await self.store.sessions.get(ref)
            with pytest.raises(SessionNotFound):
                await self.store.transcripts.page(ref, PageQuery(limit=5))
            return
        checks = [self.check_recent, self.check_page, self.check_session]
        await self.random.choice(checks)(ref, told)

    async def check_recent(self, ref: SessionRef, told: Told) -> None:
        last = self.random.choice([None, 1, 3, 10, 21, 50])
        recent = await self.store.transcripts.recent(ref, Need(last=last))
        assert recent.exists
        assert (recent.user_id, recent.document) == (told.user, told.document)
        check_shown(recent, told.lines, last)

    async def check_page(self, ref: SessionRef, told: Told) -> None:
        choose, ids = self.random, told.ids
        query = PageQuery(
            limit=choose.choice([1, 4, 21, 100]),
            descending=choose.random() < 0.5,
            before=choose.choice(ids) if ids and choose.random() < 0.4 else None,
            after=choose.choice(ids) if ids and choose.random() < 0.4 else None,
        )
        wanted = [
            line
            for line in told.lines
            if (not query.before or line[0] < query.before)
            and (not query.after or line[0] > query.after)
        ]
        if query.descending:
            wanted.reverse()
        page = await self.store.transcripts.page(ref, query)
        assert as_lines(page) == wanted[: query.limit], query

    async def check_session(self, ref: SessionRef, told: Told) -> None:
        session = await self.store.sessions.get(ref)
        found = session.user_id, session.document, session.message_count, session.last_id
        assert found == (told.user, told.document, len(told.lines), told.last_id)

    async def check_listing(self) -> None:
        page = await self.store.sessions.newest(SessionQuery(tenant="default", limit=50))
        found = sorted(session.id for session in page.items)
        assert found == sorted(ref.session_id for ref in self.told)
        for session in page.items:
            told = self.told[SessionRef("default", session.id)]
            listed = session.message_count, session.user_id, session.document
            assert listed == (len(told.lines), told.user, told.document)


def check_shown(recent: Recent, lines: list[Line], last: int | None) -> None:
    shown = newest(lines, last)
    assert as_lines(recent.messages) == shown, last
    assert as_lines(recent.pinned) == pinned_before(lines, shown), last
