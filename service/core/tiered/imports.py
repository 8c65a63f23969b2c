"""Imports over two tiers: into the archive, past a hot memory that must not hide them."""

import contextlib
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final, Protocol

from service.core.tiered.archiving import ArchiveWaits
from service.core.tiered.warming import moved_too_often, moves
from service.domain.errors import (
    ArchiveUnavailable,
    HotUnavailable,
    PreconditionFailed,
    SessionNotFound,
)
from service.domain.ids import ZERO_ID, MessageId, last_id_before
from service.domain.sessions import SessionRef
from service.ports import HotHealing, HotLook, Import, ImportRun

NOT_EMPTY: Final = "The session has messages: only an empty one is imported into."


class ArchiveImports(Protocol):
    """Imports into the archive, told what the hot memory knows of the session."""

    def begun(
        self,
        command: Import,
        *,
        now: int,
        latest: int,
        above: MessageId,
        born_id: MessageId | None = None,
        held: PreconditionFailed | None = None,
    ) -> AbstractAsyncContextManager[ImportRun]: ...


class TieredImports:
    """Imports whose session is made cold before and after.

    Before, for an import that died between its commit and its healing; after, for readers that
    found the session empty meanwhile and keep it so. Times come from the hot memory's clock: all
    that is accepted beside the import has ids above it.
    """

    def __init__(self, hot: HotHealing, archive: ArchiveImports, waits: ArchiveWaits) -> None:
        self._hot = hot
        self._archive = archive
        self._waits = waits

    @asynccontextmanager
    async def open(self, command: Import) -> AsyncGenerator[ImportRun]:
        look = await self._settled(command.ref)
        state, latest = look.state, look.now_milliseconds - 1
        named = command.user_id is not None and state.exists
        if named and state.user_id not in {None, command.user_id}:
            raise SessionNotFound
        # Not below any imported id, and below whatever is accepted from now on.
        settled = max(last_id_before(look.now_milliseconds), state.cleared_through)
        try:
            async with self._archive.begun(
                command,
                now=look.now_milliseconds,
                latest=latest,
                above=state.cleared_through,
                born_id=state.born_id if state.exists else None,
                held=PreconditionFailed(state.last_id, NOT_EMPTY) if state.held else None,
            ) as run:
                yield run
        except ArchiveUnavailable:
            # The commit may have reached the archive, and its answer not us.
            with contextlib.suppress(HotUnavailable):
                await self._hot.heal(command.ref, settled=settled)
            raise
        await self._hot.heal(command.ref, settled=settled)

    async def _settled(self, ref: SessionRef) -> HotLook:
        """Make the session cold, once the archive has its last clear or deletion.

        Raises ArchiveUnavailable where it does not get there in time.
        """
        settled = ZERO_ID
        for _ in moves():
            look = await self._hot.heal(ref, settled=settled)
            if look.state.cleared_through <= settled:
                return look
            settled = look.state.cleared_through
            await self._waits.until_archived(ref, settled)
        raise moved_too_often()
