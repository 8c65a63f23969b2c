"""Forgetting a user over two tiers, and finding the user's sessions in both."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Final

import msgspec

from service.core.tiered.archiving import ArchiveWaits
from service.domain.errors import Overloaded
from service.domain.ids import MessageId
from service.domain.sessions import SessionRef
from service.ports import (
    Archive,
    ArchiveErased,
    ArchiveErasure,
    Erased,
    HotDeletion,
    HotErased,
    HotErasure,
)

ROUNDS_MAX: Final = 5
"""Looks for the sessions of a user who goes on talking."""
ERASED_AT_ONCE: Final = 8
PAGE: Final = 200
"""Sessions that one look at the archive takes in."""


class ErasableArchive(msgspec.Struct, frozen=True, kw_only=True):
    """What an erasure needs where there is an archive."""

    archive: Archive
    erasure: ArchiveErasure
    waits: ArchiveWaits


class TieredErasure:
    """Erasure in the hot memory first, then in the archive, then of what lies between them.

    A session that is erased in the hot memory says whose it was until the archive has the deletion:
    so a repeated call finds what an earlier one has begun.
    """

    def __init__(self, hot: HotErasure, behind: ErasableArchive | None) -> None:
        self._hot = hot
        self._behind = behind

    async def erase(self, tenant: str, user_id: str) -> Erased | None:
        run = _Run(self._hot, self._behind, user_id)
        for _ in range(ROUNDS_MAX):
            if not await self._round(run, tenant, user_id):
                break
        else:
            raise Overloaded("The user goes on talking: a repeated request goes on.")

        counted = False
        if self._behind is not None:
            await self._behind.waits.until_passed(run.places.values())
            counted = await self._behind.erasure.forget_user(tenant, user_id)
        return run.erased if run.seen or counted else None

    async def _round(self, run: "_Run", tenant: str, user_id: str) -> bool:
        """Erase what is found; whether anything of it was new."""
        # Asked first: what is flushed in between is in the archive.
        found = await self._hot.find(tenant, user_id)
        for deletion in found.deletions:
            run.wait_for(deletion)
        new = await run.erase(found.refs)
        if self._behind is not None:
            async for refs in archived_pages(self._behind.archive, tenant, user_id):
                new = await run.erase(refs) or new
        return new


class _Run:
    """One erasure: what it erased so far, and what it has to wait for."""

    def __init__(self, hot: HotErasure, behind: ErasableArchive | None, user_id: str) -> None:
        self.erased = Erased()
        self.seen: dict[SessionRef, MessageId] = {}
        self.places: dict[int, tuple[SessionRef, MessageId]] = {}
        """The newest entry of each shard that must leave the journal."""
        self._hot = hot
        self._behind = behind
        self._user_id = user_id
        self._free = asyncio.Semaphore(ERASED_AT_ONCE)

    async def erase(self, refs: Sequence[SessionRef]) -> bool:
        return any(await asyncio.gather(*map(self._erase, refs)))

    def wait_for(self, deletion: HotDeletion) -> None:
        known = self.places.get(deletion.shard)
        if known is None or known[1] < deletion.id:
            self.places[deletion.shard] = (deletion.ref, deletion.id)

    async def _erase(self, ref: SessionRef) -> bool:
        """Whether there was something to erase that this run had not erased before."""
        async with self._free:
            before = await self._archived(ref)
            hot = await self._hot.erase(ref, self._user_id)
            match hot:
                case None:
                    return False
                case HotDeletion():
                    self.wait_for(hot)
                    return False
                case HotErased():
                    archived = await self._erase_archived(ref, hot.deletion.id)
        self.wait_for(hot.deletion)
        new = self.seen.get(ref) != hot.deletion.id
        self.seen[ref] = hot.deletion.id
        if new and not archived.sessions:
            # A flusher may have been faster with the deletion: then the rows are those of before.
            archived = before
        self.erased = _sum(self.erased, hot, archived)
        return new

    async def _archived(self, ref: SessionRef) -> ArchiveErased:
        """What stands in the archive of a session."""
        return await self._behind.erasure.standing(ref) if self._behind else ArchiveErased()

    async def _erase_archived(self, ref: SessionRef, through: MessageId) -> ArchiveErased:
        if self._behind is None:
            return ArchiveErased()
        return await self._behind.erasure.erase(ref, through)


class TieredUserSessions:
    """UserSessions of both tiers: first those that the archive may lack, then all others."""

    def __init__(self, hot: HotErasure, archive: Archive | None) -> None:
        self._hot = hot
        self._archive = archive

    async def walk(self, tenant: str, user_id: str) -> AsyncGenerator[SessionRef]:
        unarchived = (await self._hot.find(tenant, user_id)).refs
        for ref in unarchived:
            yield ref
        if self._archive is None:
            return
        walked = set(unarchived)
        async for refs in archived_pages(self._archive, tenant, user_id):
            for ref in refs:
                if ref not in walked:
                    yield ref


async def archived_pages(
    archive: Archive, tenant: str, user_id: str
) -> AsyncGenerator[list[SessionRef]]:
    """A user's archived sessions in an order that no activity changes."""
    after: str | None = None
    while True:
        rows = await archive.sessions_of(tenant, user_id, after=after, limit=PAGE)
        if rows:
            yield [SessionRef(tenant, session_id) for _, session_id in rows]
        if len(rows) < PAGE:
            return
        after = rows[-1][0]


def _sum(before: Erased, hot: HotErased, archived: ArchiveErased) -> Erased:
    return Erased(
        hot_sessions=before.hot_sessions + hot.hot,
        journal_entries=before.journal_entries + hot.entries,
        archive_sessions=before.archive_sessions + archived.sessions,
        archive_messages=before.archive_messages + archived.messages,
        idempotency_records=before.idempotency_records + hot.records + archived.records,
        dead_letters=before.dead_letters + hot.dead_letters,
    )
