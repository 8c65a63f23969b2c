"""Sessions over two tiers."""

import asyncio
from collections.abc import Sequence
from typing import Final

import msgspec

from service.core.tiered.archiving import ArchiveWaits
from service.core.tiered.warming import Warming, moved_too_often, moves
from service.domain.errors import ArchiveUnavailable, SessionExists, SessionNotFound
from service.domain.ids import ZERO_ID, MessageId, id_time
from service.domain.messages import id_of
from service.domain.sessions import Session, SessionDocument, SessionRef, decode_document
from service.domain.summaries import Summary
from service.ports import (
    Archive,
    ArchivedSession,
    Cold,
    Create,
    Created,
    DeadLetters,
    HotSessions,
    HotState,
    HotTranscripts,
    PageQuery,
    SessionQuery,
    SessionsPage,
)

LOOKUPS_MAX: Final = 32
"""Sessions looked up at once while listing."""


class TieredSessions:
    """Sessions in the hot memory, completed from the archive."""

    def __init__(
        self,
        hot: HotSessions,
        transcripts: HotTranscripts,
        archive: Archive | None,
        warming: Warming,
        waits: ArchiveWaits | None,
        letters: DeadLetters | None,
    ) -> None:
        self._hot = hot
        self._transcripts = transcripts
        self._archive = archive
        self._warming = warming
        self._waits = waits
        self._letters = letters

    async def create(self, command: Create) -> Created:
        for _ in moves():
            result = await self._hot.create(command)
            match result:
                case Created():
                    return result
                case None:
                    raise SessionExists("A session with this id exists.")
                case Cold(state=state):
                    await self._warming.know(command.ref, state)
        raise moved_too_often()

    async def get(self, ref: SessionRef, *, wait_seconds: float = 0) -> Session:
        session = await self._get(ref)
        lags = session.archived_through != session.last_id and session.last_id is not None
        if not (lags and wait_seconds and self._waits) or session.last_id is None:
            return session
        try:
            await self._waits.until_archived(ref, session.last_id, seconds=wait_seconds)
        except ArchiveUnavailable:
            # The caller sees in the answer how far the archive is.
            return session
        return await self._get(ref)

    async def _get(self, ref: SessionRef) -> Session:
        for _ in moves():
            state = await self._transcripts.read(ref, last=None)
            # The archive is read after the hot state: what was flushed in between is in its count.
            archived = await self._archive.session(ref) if self._archive else None
            if state.known:
                merged = _merged(ref, state, archived)
                return await self._with_letters(ref, state, archived, merged)
            if (archived is None or archived.deleted) and not state.exists:
                raise SessionNotFound
            await self._warming.know(ref, state)
        raise moved_too_often()

    async def _with_letters(
        self, ref: SessionRef, state: HotState, archived: ArchivedSession | None, merged: Session
    ) -> Session:
        """The archive has what is behind a dead letter, and not all up to there."""
        through = merged.archived_through
        if not (self._letters and self._archive and archived and through and state.letter):
            return merged
        missing = await self._letters.among(ref, state.letter, through)
        if not missing:
            return merged
        before = PageQuery(limit=1, descending=True, before=missing[0])
        rows = await self._archive.page(ref, before, above=state.cleared_through)
        hidden = 0 if state.floor == ZERO_ID else len(missing)
        return msgspec.structs.replace(
            merged,
            archived_through=id_of(rows[0]) if rows else None,
            message_count=merged.message_count + hidden,
        )

    async def newest(self, query: SessionQuery) -> SessionsPage:
        # Asked first: what is flushed in between is in the archive. A session that is named here
        # stands otherwise than its row there.
        fresher = await self._hot.unarchived(query.tenant)
        archived = await self._archive.newest_sessions(query) if self._archive else []
        hot = await self._hot_ones(query, fresher)
        cold = await self._cold_ones(query, archived, set(fresher))

        items = sorted([*hot, *cold], key=lambda session: session.active_id, reverse=True)
        if len(archived) == query.limit:
            # Below the archive's last row there may be others of it that were not read.
            reached = archived[-1][1].active_id
            items = [session for session in items if session.active_id >= reached]
            if len(items) <= query.limit:
                return SessionsPage(items=tuple(items), next_before=reached)
        shown = tuple(items[: query.limit])
        more = len(items) > query.limit
        return SessionsPage(items=shown, next_before=shown[-1].active_id if more else None)

    async def replace(self, ref: SessionRef, old: SessionDocument, new: SessionDocument) -> bool:
        for _ in moves():
            result = await self._hot.replace(ref, old, new)
            match result:
                case "replaced":
                    return True
                case "changed":
                    return False
                case "missing":
                    raise SessionNotFound
                case cold:
                    await self._warming.know(ref, cold.state)
        raise moved_too_often()

    async def summarise(self, ref: SessionRef, old: MessageId | None, summary: Summary) -> bool:
        for _ in moves():
            result = await self._hot.summarise(ref, old, summary)
            match result:
                case "replaced":
                    return True
                case "changed":
                    return False
                case "missing":
                    raise SessionNotFound
                case cold:
                    await self._warming.know(ref, cold.state)
        raise moved_too_often()

    async def delete(self, ref: SessionRef) -> None:
        for _ in moves():
            result = await self._hot.delete(ref)
            if result is True:
                return
            if result is False:
                raise SessionNotFound
            await self._warming.know(ref, result.state)
        raise moved_too_often()

    async def _hot_ones(self, query: SessionQuery, ids: Sequence[str]) -> list[Session]:
        found: list[Session] = []
        for start in range(0, len(ids), LOOKUPS_MAX):
            refs = [SessionRef(query.tenant, name) for name in ids[start : start + LOOKUPS_MAX]]
            sessions = await asyncio.gather(*(self._find(ref) for ref in refs))
            found += (session for session in sessions if session and _matches(session, query))
        return found

    async def _find(self, ref: SessionRef) -> Session | None:
        try:
            return await self.get(ref)
        except SessionNotFound:
            return None

    async def _cold_ones(
        self, query: SessionQuery, rows: Sequence[tuple[str, ArchivedSession]], hot: set[str]
    ) -> list[Session]:
        cold = [(session_id, row) for session_id, row in rows if session_id not in hot]
        refs = [SessionRef(query.tenant, session_id) for session_id, _ in cold]
        ttls = await self._hot.remaining(refs)
        return [
            _archived(session_id, row, ttl)
            for (session_id, row), ttl in zip(cold, ttls, strict=True)
        ]


def _matches(session: Session, query: SessionQuery) -> bool:
    return (query.user_id is None or session.user_id == query.user_id) and (
        query.before is None or session.active_id < query.before
    )


def _merged(ref: SessionRef, state: HotState, archived: ArchivedSession | None) -> Session:
    if not state.exists or state.active_id is None or state.born_id is None:
        raise SessionNotFound
    return Session(
        id=ref.session_id,
        user_id=state.user_id,
        document=decode_document(state.document),
        created_at=id_time(state.born_id),
        active_id=state.active_id,
        message_count=_count(state, archived),
        last_id=state.last_id,
        archived_through=archived.archived_through if archived else None,
        ttl=state.ttl,
    )


def _count(state: HotState, archived: ArchivedSession | None) -> int:
    if state.floor == ZERO_ID or archived is None:
        return state.held
    through = archived.archived_through or ZERO_ID
    return archived.message_count + sum(id_of(text) > through for text in state.messages)


def _archived(session_id: str, row: ArchivedSession, ttl: int | None) -> Session:
    return Session(
        id=session_id,
        user_id=row.user_id,
        document=decode_document(row.document),
        created_at=id_time(row.born_id),
        active_id=row.active_id,
        message_count=row.message_count,
        last_id=row.last_id,
        archived_through=row.archived_through,
        ttl=ttl,
    )
