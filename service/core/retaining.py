"""Retaining: messages are kept for so long and no longer, in both tiers."""

from collections.abc import Callable
from typing import Final

import msgspec

from service.domain.ids import ZERO_ID, MessageId
from service.ports import ArchiveRetention, HotRetention

ROWS_MAX: Final = 1000
"""Messages that one transaction drops."""
SESSIONS_MAX: Final = 100
"""Sessions that one transaction ends: in hybrid their rows are held while Redis is told."""


class Retained(msgspec.Struct, kw_only=True):
    """What a run dropped so far."""

    tenants: int = 0
    messages: int = 0
    sessions_ended: int = 0
    complete: bool = False


class Retaining:
    """Drops old messages tenant by tenant, batch by batch, and sessions in which nothing is left.

    Between two batches it may be stopped or die: what is dropped is dropped in both tiers, and the
    next run goes on.
    """

    def __init__(
        self,
        archive: ArchiveRetention,
        hot: HotRetention | None,
        *,
        stopped: Callable[[], bool],
    ) -> None:
        self._archive = archive
        self._hot = hot
        self._stopped = stopped

    async def run(self, before: MessageId) -> Retained:
        """Drop what is older than an id. Raises HotUnavailable, ArchiveUnavailable, BacklogFull."""
        done = Retained()
        tenant = ""
        while not self._stopped():
            following = await self._archive.next_tenant(tenant)
            if following is None:
                done.complete = True
                break
            tenant = following
            done.tenants += 1
            await self._drop_messages(tenant, before, done)
            await self._end_sessions(tenant, before, done)
        return done

    async def _drop_messages(self, tenant: str, before: MessageId, done: Retained) -> None:
        while not self._stopped():
            cuts = await self._archive.old(tenant, before=before, limit=ROWS_MAX)
            if not cuts:
                return
            # Before, so that nothing is dropped while Redis is away, and a death in between leaves
            # nothing hot; after, for what was filled in between.
            if self._hot is not None:
                await self._hot.cut(cuts)
            dropped = await self._archive.cut(tenant, cuts)
            done.messages += dropped
            if self._hot is not None:
                await self._hot.cut(cuts)
            if dropped == 0:
                # Others took them meanwhile; the next run sees whether anything is left.
                return

    async def _end_sessions(self, tenant: str, before: MessageId, done: Retained) -> None:
        after = ZERO_ID
        while not self._stopped():
            idle = await self._archive.idle(tenant, before=before, after=after, limit=SESSIONS_MAX)
            if not idle:
                return
            refs, after = [ref for ref, _ in idle], idle[-1][1]
            if self._hot is not None:
                # The journal brings it into the archive, in its place among what is said. An import
                # does not go through the journal: it is kept away, and one that was faster is seen.
                # Their rows are locked, so that what is said meanwhile is not archived and evicted.
                async with self._archive.still_idle(tenant, refs, before=before) as kept:
                    done.sessions_ended += await self._hot.end(kept, before=before)
            else:
                done.sessions_ended += await self._archive.end(tenant, refs, before=before)
