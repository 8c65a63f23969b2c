"""Bringing archived state together with what is hot, and keeping it hot."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

import msgspec

from service.core.tiered.merging import covers, hot_recent, merged_recent
from service.domain.context import BUFFER_MESSAGES_MAX, TOKENS_PAGE, Need
from service.domain.errors import ContextTooLarge, InvalidValue, Overloaded
from service.domain.ids import HIGHEST_ID, ZERO_ID
from service.domain.messages import decode_messages, id_of, is_pinned, newest, tokens_in
from service.domain.observations import HotRead
from service.domain.sessions import SessionRef, decode_document
from service.domain.summaries import decode_summary
from service.ports import (
    Archive,
    ArchivedSession,
    Filled,
    Filling,
    HotState,
    HotTranscripts,
    Observer,
    PageQuery,
    Recent,
)

MOVES_MAX: Final = 5
"""Times that a session may change under one call before the call gives up."""


class Warming:
    """Reads the archive where the hot memory does not hold enough.

    The hot part is always read before the archive: what leaves the hot list in between was
    archived before, so together they miss nothing.
    """

    def __init__(
        self,
        hot: HotTranscripts,
        archive: Archive | None,
        *,
        held_max: int,
        observer: Observer,
    ) -> None:
        self._hot = hot
        self._archive = archive
        self._held_max = held_max
        self._observer = observer
        self._fillings: dict[SessionRef, _Filling] = {}

    @property
    def archive(self) -> Archive:
        # Without an archive every session is known and complete, so nobody comes here.
        if self._archive is None:
            raise AssertionError("a store without an archive is never cold")
        return self._archive

    def archive_to_ask(self) -> Archive:
        """For who asks for the archive by name. Raises InvalidValue where there is none."""
        if self._archive is None:
            raise InvalidValue.of("consistency", "this store has no archive")
        return self._archive

    async def archived_recent(self, ref: SessionRef, need: Need) -> Recent:
        """What the archive alone has; nothing is filled."""
        archive = self.archive_to_ask()
        session = await archive.session(ref)
        pinned = await archive.pinned(ref, above=ZERO_ID, below=HIGHEST_ID)
        limit = BUFFER_MESSAGES_MAX if need.last is None else need.last + len(pinned)
        query = PageQuery(limit=limit, descending=True)
        texts = await archive.page(ref, query, above=ZERO_ID)
        messages = newest(decode_messages(texts[::-1]), need.last)
        first = messages[0].id if messages else HIGHEST_ID
        return Recent(
            exists=session is not None and not session.deleted,
            user_id=session.user_id if session else None,
            document=decode_document(session.document if session else b""),
            messages=tuple(messages),
            pinned=tuple(m for m in decode_messages(pinned) if m.id < first),
            ttl=None,
            summary=decode_summary(session.summary if session else b""),
        )

    async def know(self, ref: SessionRef, seen: HotState) -> ArchivedSession | None:
        """Take in owner, settings and existence from the archive."""
        await self._settle_import(ref, seen)
        session = await self.archive.session(ref)
        stands = session is not None and not session.deleted
        if not stands and not seen.exists:
            await self._fill(ref, seen, session, older=[], pinned=[], to_start=True)
        else:
            await self._hot.fill(Filling(ref=ref, seen=seen, session=session, floor=None))
        return session if stands else None

    async def recent(self, ref: SessionRef, need: Need) -> Recent:
        """The newest messages, from the archive where needed; fills the hot memory."""
        state = await self._hot.read(ref, last=need.last)
        if covers(state, need):
            self._observer.observe(HotRead(result="hit"))
            return hot_recent(state, need)
        async with self._one_filling(ref):
            return await self._recent(ref, need)

    async def _recent(self, ref: SessionRef, need: Need) -> Recent:
        for _ in moves():
            # Whoever held the place before may have filled what is needed here.
            state = await self._hot.read(ref, last=None)
            if covers(state, need):
                self._observer.observe(HotRead(result="hit"))
                return hot_recent(state, need)
            recent, still = await self.complete(ref, state, need)
            if still:
                return recent
        raise moved_too_often()

    async def complete(self, ref: SessionRef, state: HotState, need: Need) -> tuple[Recent, bool]:
        """Add what the archive has below the floor; ``state`` holds all that is hot.

        Also returns whether the session stood still meanwhile: a clear in between may have taken
        the older part away.

        Raises ContextTooLarge where all of a very long session is asked for.
        """
        await self._settle_import(ref, state)
        session = await self.archive.session(ref)
        stands = session is not None and not session.deleted
        if not stands and not state.exists:
            filled = await self._fill(ref, state, session, older=[], pinned=[], to_start=True)
            return hot_recent(state, need), filled is not None

        pinned = await self._pinned(ref, state)
        if need.tokens is not None:
            older, to_start = await self._older_by_tokens(ref, state, need.tokens)
        else:
            wanted = None if need.last is None else need.last + len(pinned)
            older, to_start = await self._older(ref, state, wanted)
        filled = await self._fill(
            ref, state, session, older=older, pinned=pinned, to_start=to_start
        )
        self._observer.observe(HotRead(result="filled" if filled else "merged"))
        recent = merged_recent(
            state,
            decode_messages(older),
            decode_messages(pinned),
            need,
            user_id=session.user_id if session else None,
            document=session.document if session and not state.known else b"",
            summary=session.summary if session and not state.known else b"",
        )
        ttl = filled.ttl if filled else state.ttl
        if filled is None and not state.known:
            # Said more in meanwhile: what does not depend on messages is known all the same.
            await self._hot.fill(Filling(ref=ref, seen=state, session=session, floor=None))
        still = filled is not None or await self._only_said_more(ref, state)
        return msgspec.structs.replace(recent, exists=True, ttl=ttl), still

    async def _settle_import(self, ref: SessionRef, seen: HotState) -> None:
        """A session that waits for an import whose process died need not wait any longer."""
        if seen.importing and not await self.archive.is_importing(ref):
            await self._hot.import_ended(ref, seen.importing)

    async def _only_said_more(self, ref: SessionRef, seen: HotState) -> bool:
        """Whether what was read holds, though it could not be filled.

        Messages that came since are after it; a clear or a loss is told by the other two.
        """
        now = await self._hot.read(ref, last=0)
        return (now.epoch, now.cleared_through) == (seen.epoch, seen.cleared_through)

    async def _older(
        self, ref: SessionRef, state: HotState, last: int | None
    ) -> tuple[list[bytes], bool]:
        """Archived messages below the floor, in order, and whether they reach the beginning."""
        if state.floor == ZERO_ID:
            return [], True
        limit = BUFFER_MESSAGES_MAX + 1 if last is None else max(0, last - state.held)
        if limit == 0:
            return [], False
        query = PageQuery(limit=limit, descending=True, before=state.floor)
        texts = await self.archive.page(ref, query, above=state.cleared_through)
        if last is None and len(texts) == limit:
            raise ContextTooLarge(
                f"The session has more than {BUFFER_MESSAGES_MAX} messages: use a window."
            )
        texts.reverse()
        return texts, len(texts) < limit

    async def _older_by_tokens(
        self, ref: SessionRef, state: HotState, tokens: int
    ) -> tuple[list[bytes], bool]:
        """As ``_older``, page by page until there are so many tokens with what is hot."""
        if state.floor == ZERO_ID:
            return [], True
        older: list[bytes] = []
        left, before = tokens - tokens_in(state.messages), state.floor
        while left > 0 and len(older) < BUFFER_MESSAGES_MAX:
            query = PageQuery(limit=TOKENS_PAGE, descending=True, before=before)
            texts = await self.archive.page(ref, query, above=state.cleared_through)
            older += texts
            if len(texts) < TOKENS_PAGE:
                return older[::-1], True
            left -= tokens_in(texts)
            before = id_of(texts[-1])
        return older[::-1], False

    async def _pinned(self, ref: SessionRef, state: HotState) -> list[bytes]:
        """All system and developer messages of the session."""
        if state.pinned_complete:
            return list(state.pinned)
        archived: list[bytes] = []
        if state.floor != ZERO_ID:
            archived = await self.archive.pinned(
                ref, above=state.cleared_through, below=state.floor or HIGHEST_ID
            )
        return [*archived, *(text for text in state.messages if is_pinned(text))]

    async def _fill(
        self,
        ref: SessionRef,
        state: HotState,
        session: ArchivedSession | None,
        *,
        older: list[bytes],
        pinned: list[bytes],
        to_start: bool,
    ) -> Filled | None:
        """Keep the newest of ``older`` hot, as many as the cap allows."""
        room = max(0, self._held_max - state.held)
        kept = older[-room:] if room else []
        whole = to_start and len(kept) == len(older)
        floor = ZERO_ID if whole else id_of(kept[0]) if kept else state.floor
        return await self._hot.fill(
            Filling(
                ref=ref,
                seen=state,
                session=session,
                floor=floor,
                messages=tuple(kept),
                pinned=None if floor is None else tuple(pinned),
            )
        )

    @asynccontextmanager
    async def _one_filling(self, ref: SessionRef) -> AsyncGenerator[None]:
        """One filling per session and process at a time."""
        filling = self._fillings.setdefault(ref, _Filling())
        filling.waiting += 1
        try:
            async with filling.lock:
                yield
        finally:
            filling.waiting -= 1
            if filling.waiting == 0:
                self._fillings.pop(ref, None)


def moves() -> range:
    """Attempts of a call that starts over when the session moved under it."""
    return range(MOVES_MAX)


def moved_too_often() -> Overloaded:
    return Overloaded("The session changes too fast to be looked up in the archive.")


class _Filling:
    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.waiting = 0
