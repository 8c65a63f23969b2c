"""Imports over two tiers: into the archive, past a hot memory that must not hide them."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final, Protocol

from service.core.tiered.archiving import ArchiveWaits
from service.core.tiered.warming import moved_too_often, moves
from service.domain.errors import (
    HotUnavailable,
    PreconditionFailed,
    SessionNotFound,
)
from service.domain.ids import ZERO_ID, MessageId, last_id_before
from service.ports import HotHealing, HotLook, HotState, Import, ImportRun

NOT_EMPTY: Final = "The session has messages: only an empty one is imported into."
RESERVED_SECONDS: Final = 60.0
"""Longer than the commit of an import may take."""


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
    """Imports into sessions that the hot memory may know to be empty, and keep so.

    Such a session is made cold where the archive got messages, also of an import that died then.
    Times come from the hot memory's clock: all that is accepted beside the import has ids above it.
    """

    def __init__(self, hot: HotHealing, archive: ArchiveImports, waits: ArchiveWaits) -> None:
        self._hot = hot
        self._archive = archive
        self._waits = waits

    @asynccontextmanager
    async def open(self, command: Import) -> AsyncGenerator[ImportRun]:
        look = await self._settled(command)
        state, latest = look.state, look.now_milliseconds - 1
        # Not below any imported id, and below whatever is accepted from now on.
        settled = max(last_id_before(look.now_milliseconds), state.cleared_through)
        ended = False
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
                ended = True
                if run.done is None:
                    await self._reserve(command, settled)
        except BaseException as error:
            # The commit may have reached the archive, and its answer not us; or an earlier import's
            # did before it died.
            if ended or (isinstance(error, PreconditionFailed) and not state.held):
                with contextlib.suppress(HotUnavailable):
                    await asyncio.shield(self._hot.heal(command.ref, settled=settled))
            raise
        await self._hot.heal(command.ref, settled=settled)

    async def _reserve(self, command: Import, settled: MessageId) -> None:
        """Whoever became the owner beside the import is in the row, which is locked, or the head.

        From here on nobody else becomes it, and nobody is told any more that there is nothing: also
        where this process dies between the commit and the healing.
        """
        seconds = RESERVED_SECONDS
        reserved = await self._hot.reserve(
            command.ref, command.user_id, settled=settled, seconds=seconds
        )
        if not reserved:
            raise SessionNotFound

    async def _settled(self, command: Import) -> HotLook:
        """How the session stands, once the archive has its last clear or deletion.

        Raises ArchiveUnavailable where it does not get there in time, SessionNotFound,
        PreconditionFailed.
        """
        settled = ZERO_ID
        for _ in moves():
            look = await self._hot.look(command.ref)
            _check(command, look.state)
            if look.state.cleared_through <= settled:
                return look
            settled = look.state.cleared_through
            await self._waits.until_archived(command.ref, settled)
        raise moved_too_often()


def _check(command: Import, state: HotState) -> None:
    named = command.user_id is not None and state.exists
    if named and state.user_id not in {None, command.user_id}:
        raise SessionNotFound
    if state.held and command.key is None:
        # With a key it may have been done before: the archive is asked first.
        raise PreconditionFailed(state.last_id, NOT_EMPTY)
