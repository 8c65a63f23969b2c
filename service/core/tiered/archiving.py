"""Waiting until what was accepted is in the archive."""

import asyncio
from collections.abc import Iterable
from typing import Final

from service.core.background import owned_task
from service.domain.errors import ArchiveUnavailable, DeadLettered, DurabilityUnavailable
from service.domain.ids import ZERO_ID, MessageId, split_id
from service.domain.sessions import SessionRef
from service.ports import Archive, DeadLetters, Journal, Wanted

LOOK_PAUSE_SECONDS: Final = 0.005
"""Between two looks at the journal while somebody waits."""


class ArchiveWaits:
    """Lets any number of callers wait; one look at the journal serves all of them.

    An entry leaves the journal only after its commit or as a dead letter, and in order: when the
    oldest entry of a shard is younger than a message, or there is none, it is time to ask the
    archive. That one has the word: a journal that was lost looks the same.
    """

    def __init__(
        self, journal: Journal, archive: Archive, letters: DeadLetters, *, seconds: float
    ) -> None:
        self._journal = journal
        self._archive = archive
        self._letters = letters
        self._seconds = seconds
        self._waiting: dict[asyncio.Future[None], tuple[SessionRef, tuple[int, int]]] = {}
        self._looking: asyncio.Task[None] | None = None

    async def until_archived(
        self,
        ref: SessionRef,
        message_id: MessageId,
        *,
        first: MessageId | None = None,
        seconds: float | None = None,
    ) -> None:
        """Wait for a message, or for all from ``first`` on up to it.

        Raises ArchiveUnavailable at the time-out; the messages stand as journaled. Raises
        DeadLettered at once where the archive has refused one of them.
        """
        try:
            async with asyncio.timeout(self._seconds if seconds is None else seconds):
                await self._left(ref, message_id)
                # What leaves the journal for the letters does so in one step.
                if await self._letters.among(ref, first or message_id, message_id):
                    raise DeadLettered
                archived = await self._has(ref, message_id)
        except TimeoutError as error:
            raise ArchiveUnavailable(
                "The archive did not commit in time; the messages are safe in the journal."
            ) from error
        if not archived:
            raise ArchiveUnavailable("The messages left the journal and are not in the archive.")

    async def until_passed(self, entries: Iterable[tuple[SessionRef, MessageId]]) -> None:
        """Wait until the journal holds nothing of the entries' shards up to them.

        Raises ArchiveUnavailable at the time-out.
        """
        try:
            async with asyncio.timeout(self._seconds):
                for ref, entry_id in entries:
                    await self._left(ref, entry_id)
        except TimeoutError as error:
            raise ArchiveUnavailable(
                "The archive did not commit in time; a repeated request goes on."
            ) from error

    async def _left(self, ref: SessionRef, entry_id: MessageId) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[waiter] = (ref, split_id(entry_id))
        if self._looking is None:
            self._looking = owned_task(self._look(), name="archive-waits")
        try:
            await waiter
        finally:
            self._waiting.pop(waiter, None)

    async def _has(self, ref: SessionRef, message_id: MessageId) -> bool:
        session = await self._archive.session(ref)
        if session is None:
            return False
        through = max(session.archived_through or ZERO_ID, session.cleared_through)
        return through >= message_id

    async def _look(self) -> None:
        """Ends by itself when nobody waits."""
        try:
            while self._waiting:
                await self._look_once()
                await asyncio.sleep(LOOK_PAUSE_SECONDS)
        finally:
            self._looking = None

    async def _look_once(self) -> None:
        waiting = dict(self._waiting)
        try:
            oldest = await self._journal.oldest([ref for ref, _ in waiting.values()])
        except Exception as error:  # noqa: BLE001  # Whoever waits is told, whatever it was.
            for waiter in waiting:
                _settle(waiter, error)
            return
        for (waiter, (_, place)), first in zip(waiting.items(), oldest, strict=True):
            if first is None or first > place:
                _settle(waiter, None)


def check_archived(wanted: Wanted, waits: ArchiveWaits | None) -> None:
    """Raises DurabilityUnavailable for what only an archive can give."""
    if wanted == "archived" and waits is None:
        raise DurabilityUnavailable("This store has no archive.")


def _settle(waiter: asyncio.Future[None], error: Exception | None) -> None:
    if waiter.done():
        return
    if error is None:
        waiter.set_result(None)
    else:
        waiter.set_exception(error)
