"""The flusher: carries the journal into the archive, batch by batch, in order, once.

A batch is committed before its entries leave the journal, and they leave it only where they still
stand at its head. A crash at any point repeats a batch that changes nothing the second time.
"""

import asyncio
import math
from collections.abc import Sequence
from typing import Final

import msgspec

from service.core.background import Looper
from service.core.carrying import Carrier
from service.domain.errors import ArchiveRefused, ChatMemoryError
from service.domain.journal import Entry, ShardBacklog, Unreadable
from service.domain.observations import FlushFailed, ShardsOwned
from service.ports import Clock, Journal, Observer, ShardLeases

RENEWALS_PER_LEASE: Final = 3
STUCK_PAUSE_SECONDS: Final = 5.0
"""Between two attempts at a shard that cannot go on."""
STUCK: Final = "ShardStuck"


class FlushSettings(msgspec.Struct, frozen=True, kw_only=True):
    shards: int
    batch_max: int
    """Entries in one transaction."""
    batch_bytes_max: int
    """Bytes of their bodies, so that a batch of large messages is read and written in time."""
    drain_seconds: float
    """Time of a last flush at stop; within the grace time."""
    linger_seconds: float
    """Pause before a batch that is not full, so that small ones do not crowd the archive."""
    lease_seconds: float


class ShardOwnership:
    """Which shards this flusher works on: an even share of all, among the flushers alive.

    A lease saves double work and no more: were two flushers to work on one shard, each batch would
    still be committed once.
    """

    def __init__(
        self,
        leases: ShardLeases,
        owner: str,
        settings: FlushSettings,
        *,
        clock: Clock,
        observer: Observer,
    ) -> None:
        self._leases = leases
        self._owner = owner
        self._settings = settings
        self._clock = clock
        self._observer = observer
        self._owned: list[int] = []
        self._valid_until = 0.0

    @property
    def owned(self) -> list[int]:
        """The shards whose lease is certainly ours still."""
        return list(self._owned) if self._clock.monotonic() < self._valid_until else []

    async def renew(self) -> None:
        """Keep one's shards, take free ones up to the share, give up what is beyond it."""
        asked_at = self._clock.monotonic()
        owners = await self._leases.live_owners(self._owner)
        share = math.ceil(self._settings.shards / max(1, owners))
        kept: list[int] = []
        for shard in self._candidates():
            if len(kept) < share:
                if await self._leases.take(shard, self._owner):
                    kept.append(shard)
            elif shard in self._owned:
                await self._leases.release(shard, self._owner)
        self._owned = kept
        self._valid_until = asked_at + self._settings.lease_seconds
        self._observer.observe(ShardsOwned(count=len(kept)))

    async def give_up(self) -> None:
        for shard in self._owned:
            await self._leases.release(shard, self._owner)
        self._owned = []
        await self._leases.leave(self._owner)

    def _candidates(self) -> list[int]:
        # One's own first: ownership moves only where the share demands it.
        others = [shard for shard in range(self._settings.shards) if shard not in self._owned]
        return [*self._owned, *others]


class Flusher:
    """Component that flushes the shards it owns."""

    def __init__(
        self,
        journal: Journal,
        carrier: Carrier,
        ownership: ShardOwnership,
        settings: FlushSettings,
        *,
        clock: Clock,
        observer: Observer,
    ) -> None:
        self._journal = journal
        self._carrier = carrier
        self._ownership = ownership
        self._settings = settings
        self._clock = clock
        self._observer = observer
        # Smaller after a failure, so that no batch is too large for ever, and then larger again.
        self._batch_max = settings.batch_max
        self._more = False
        # Shards that cannot go on, and until when they are left alone.
        self._stuck: dict[int, float] = {}
        self._renewing = Looper(
            "shard-leases",
            ownership.renew,
            pause_seconds=settings.lease_seconds / RENEWALS_PER_LEASE,
            observer=observer,
        )
        self._flushing = Looper(
            "flusher", self._work, pause_seconds=settings.linger_seconds, observer=observer
        )

    async def start(self) -> None:
        await self._renewing.start()
        await self._flushing.start()

    async def stop(self) -> None:
        """Finish the batch at hand, flush what is left, give the shards up."""
        await self._flushing.stop()
        await self.drain()
        await self._renewing.stop()
        try:
            await self._ownership.give_up()
        except ChatMemoryError as error:
            # The leases end by themselves.
            self._observer.observe(FlushFailed(reason=type(error).__name__, entries=0))

    async def drain(self) -> None:
        """Flush what is there by now, until it is done, a store is away or the time is over.

        What is accepted meanwhile is another flusher's.
        """
        deadline = self._clock.monotonic() + self._settings.drain_seconds
        until: int | None = None
        try:
            while self._clock.monotonic() < deadline:
                backlog = await self._journal.backlog(self._going())
                if until is None:
                    until = max((shard.now_milliseconds for shard in backlog), default=0)
                if not any(_has_older(shard, until) for shard in backlog):
                    return
                await self.flush_once()
        except ChatMemoryError as error:
            self._observer.observe(FlushFailed(reason=type(error).__name__, entries=0))

    async def flush_once(self) -> int:
        """One batch over the owned shards; returns how many entries it had."""
        try:
            flushed = await self._flush()
        except ChatMemoryError:
            self._batch_max = max(1, self._batch_max // 2)
            raise
        self._batch_max = min(self._settings.batch_max, self._batch_max * 2)
        return flushed

    async def _flush(self) -> int:
        backlog = await self._journal.backlog(self._going())
        wanted = shares(backlog, self._batch_of(backlog))
        self._more = False
        if not wanted:
            return 0
        heads = await self._journal.head(wanted)
        for (shard, _), head in zip(wanted, heads, strict=True):
            if not head:
                # Its oldest entry is of a kind that another release knows.
                self._leave(shard)
        runs = within_bytes(heads, self._settings.batch_bytes_max)
        count = sum(map(len, runs))
        if not count:
            return 0
        if not await self._together(wanted, runs):
            await self._apart(wanted, runs)
        self._more = count < sum(shard.entries for shard in backlog)
        return count

    async def _together(
        self, wanted: Sequence[tuple[int, int]], runs: Sequence[Sequence[Entry | Unreadable]]
    ) -> bool:
        """One transaction over all shards; False where the archive cannot take it as it is."""
        readable = [[entry for entry in run if isinstance(entry, Entry)] for run in runs]
        if list(map(len, readable)) != list(map(len, runs)):
            return False
        try:
            await self._carrier.commit([entry for run in readable for entry in run])
        except ArchiveRefused:
            return False
        await asyncio.gather(
            *(
                self._carrier.acknowledge(shard, run)
                for (shard, _), run in zip(wanted, readable, strict=True)
                if run
            )
        )
        return True

    def _batch_of(self, backlog: Sequence[ShardBacklog]) -> int:
        """Entries of a batch that is about as large as it may be, by their average size."""
        entries = sum(shard.entries for shard in backlog)
        size = sum(shard.bytes for shard in backlog)
        fitting = self._settings.batch_bytes_max * entries // max(1, size)
        return max(1, min(self._batch_max, fitting))

    async def _work(self) -> bool:
        await self.flush_once()
        # While there is more, batches follow one another; else the queue may fill a little.
        return self._more

    async def _apart(
        self,
        wanted: Sequence[tuple[int, int]],
        runs: Sequence[Sequence[Entry | Unreadable]],
    ) -> None:
        """Shard by shard: one that cannot go on does not hold up the others."""
        for (shard, _), run in zip(wanted, runs, strict=True):
            if run and not await self._carrier.carry(shard, run):
                self._leave(shard)

    def _leave(self, shard: int) -> None:
        """Leave a shard alone for a while: it cannot go on, and its entries are safe."""
        self._stuck[shard] = self._clock.monotonic() + STUCK_PAUSE_SECONDS
        self._observer.observe(FlushFailed(reason=STUCK, entries=1))

    def _going(self) -> list[int]:
        now = self._clock.monotonic()
        self._stuck = {shard: until for shard, until in self._stuck.items() if until > now}
        return [shard for shard in self._ownership.owned if shard not in self._stuck]


def within_bytes(
    runs: Sequence[list[Entry | Unreadable]], bytes_max: int
) -> list[list[Entry | Unreadable]]:
    """The beginnings of the runs that together stay within the size, one entry at the least."""
    kept: list[list[Entry | Unreadable]] = []
    left = bytes_max
    for run in runs:
        count = 0
        for entry in run:
            if entry.size > left and (count or any(kept)):
                break
            left -= entry.size
            count += 1
        kept.append(run[:count])
    return kept


def _has_older(shard: ShardBacklog, milliseconds: int) -> bool:
    return shard.oldest_milliseconds is not None and shard.oldest_milliseconds <= milliseconds


def shares(backlog: Sequence[ShardBacklog], batch_max: int) -> list[tuple[int, int]]:
    """Divide a batch over the shards that have entries, by how many they have.

    Every one of them gets at least one, so that none starves; the sum may exceed ``batch_max`` by
    the number of shards.
    """
    total = sum(shard.entries for shard in backlog)
    if total <= batch_max:
        return [(shard.shard, shard.entries) for shard in backlog if shard.entries]
    return [
        (shard.shard, max(1, batch_max * shard.entries // total))
        for shard in backlog
        if shard.entries
    ]
