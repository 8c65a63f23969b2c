"""Transcripts over two tiers."""

import msgspec

from service.core.tiered.archiving import ArchiveWaits, check_archived
from service.core.tiered.warming import Warming, moved_too_often, moves
from service.domain.context import Need
from service.domain.errors import SessionNotFound
from service.domain.ids import ZERO_ID
from service.domain.messages import Message, decode_messages, id_of, role_in
from service.domain.observations import HotRead, MessagesAppended
from service.domain.sessions import SessionRef
from service.ports import (
    Append,
    Appended,
    HotState,
    HotTranscripts,
    Observer,
    PageQuery,
    Recent,
)


class TieredTranscripts:
    """Transcripts in the hot memory, completed from the archive."""

    def __init__(
        self,
        hot: HotTranscripts,
        warming: Warming,
        waits: ArchiveWaits | None,
        observer: Observer,
    ) -> None:
        self._hot = hot
        self._warming = warming
        self._waits = waits
        self._observer = observer

    async def append(self, command: Append) -> Appended:
        check_archived(command.durability, self._waits)
        for _ in moves():
            result = await self._hot.append(command)
            if isinstance(result, Appended):
                return await self._acknowledged(command, result)
            await self._warming.know(command.ref, result.state)
        raise moved_too_often()

    async def _acknowledged(self, command: Append, appended: Appended) -> Appended:
        self._observer.observe(
            MessagesAppended(
                count=len(appended.ids),
                durability=command.durability,
                replayed=appended.replayed,
            )
        )
        if command.durability != "archived" or self._waits is None:
            return appended
        await self._waits.until_archived(command.ref, appended.ids[-1], first=appended.ids[0])
        return msgspec.structs.replace(appended, durability="archived")

    async def recent(self, ref: SessionRef, need: Need, *, archive_only: bool = False) -> Recent:
        if archive_only:
            return await self._warming.archived_recent(ref, need)
        return await self._warming.recent(ref, need)

    async def page(self, ref: SessionRef, query: PageQuery) -> list[Message]:
        if query.archive_only:
            return await self._archived(ref, query)
        if query == PageQuery(limit=query.limit, descending=True):
            return await self._newest(ref, query.limit)

        state = await self._hot.read(ref, last=None)
        held = [text for text in state.messages if _matches(text, query)]
        if state.exists and _held_answers(state, query, len(held)):
            self._observer.observe(HotRead(result="hit"))
            texts = held[::-1] if query.descending else held
            return decode_messages(texts[: query.limit])
        await self._must_exist(ref, state)
        self._observer.observe(HotRead(result="merged"))
        return decode_messages(await self._merged(ref, state, query, held))

    async def clear(self, ref: SessionRef) -> None:
        for _ in moves():
            result = await self._hot.clear(ref)
            if result is True:
                return
            if result is False:
                raise SessionNotFound
            await self._warming.know(ref, result.state)
        raise moved_too_often()

    async def _archived(self, ref: SessionRef, query: PageQuery) -> list[Message]:
        archive = self._warming.archive_to_ask()
        session = await archive.session(ref)
        if session is None or session.deleted:
            raise SessionNotFound
        return decode_messages(await archive.page(ref, query, above=ZERO_ID))

    async def _newest(self, ref: SessionRef, limit: int) -> list[Message]:
        recent = await self._warming.recent(ref, Need(last=limit))
        if not recent.exists:
            raise SessionNotFound
        return list(reversed(recent.messages[-limit:]))

    async def _must_exist(self, ref: SessionRef, state: HotState) -> None:
        if state.exists:
            return
        if state.known or await self._warming.know(ref, state) is None:
            raise SessionNotFound

    async def _merged(
        self, ref: SessionRef, state: HotState, query: PageQuery, held: list[bytes]
    ) -> list[bytes]:
        """Archive rows below the floor, and what is held at and above it."""
        below = min(query.before, state.floor) if query.before and state.floor else None
        bounded = PageQuery(
            limit=query.limit,
            descending=query.descending,
            after=query.after,
            before=below or query.before or state.floor,
            role=query.role,
        )
        if query.descending:
            newest_first = held[::-1][: query.limit]
            if len(newest_first) == query.limit:
                return newest_first
            rows = await self._warming.archive.page(ref, bounded, above=state.cleared_through)
            return [*newest_first, *rows][: query.limit]
        rows = await self._warming.archive.page(ref, bounded, above=state.cleared_through)
        return [*rows, *held][: query.limit]


def _matches(text: bytes, query: PageQuery) -> bool:
    identity = id_of(text)
    return (
        (query.after is None or identity > query.after)
        and (query.before is None or identity < query.before)
        and (query.role is None or role_in(text) == query.role)
    )


def _held_answers(state: HotState, query: PageQuery, matching: int) -> bool:
    if state.floor == ZERO_ID:
        return True
    if state.floor is None:
        return False
    if query.after is not None and query.after >= state.floor:
        return True
    return query.descending and matching >= query.limit
