"""Recall: reading conversations back."""

from typing import Final

import msgspec

from service.core.recording import check_session
from service.domain.context import ContextOptions, Strategy, check_options, plan, window
from service.domain.errors import InvalidValue
from service.domain.ids import check_id
from service.domain.messages import Message
from service.domain.sessions import Session, SessionRef
from service.ports import PageQuery, SessionQuery, Sessions, SessionsPage, Transcripts

PAGE_LIMIT_MAX: Final = 1000


class MessagesPage(msgspec.Struct, frozen=True, kw_only=True):
    items: tuple[Message, ...]
    next_cursor: str | None


class History(msgspec.Struct, frozen=True, kw_only=True):
    """The newest messages of a session in order; ``next_cursor`` leads to the older ones."""

    user_id: str | None
    messages: tuple[Message, ...]
    ttl: int | None
    next_cursor: str | None


class ShownContext(msgspec.Struct, frozen=True, kw_only=True):
    """What a model would be shown, and how many messages it would not."""

    strategy: Strategy
    messages: tuple[Message, ...]
    left_out: int


class Recall:
    """Pages, history, context and sessions."""

    def __init__(self, transcripts: Transcripts, sessions: Sessions) -> None:
        self._transcripts = transcripts
        self._sessions = sessions

    async def page(self, ref: SessionRef, query: PageQuery) -> MessagesPage:
        """Raises SessionNotFound, and InvalidValue for a limit out of range."""
        check_session(ref)
        check_limit(query.limit)
        # One more than asked for tells whether another page follows.
        more = msgspec.structs.replace(query, limit=query.limit + 1)
        messages = await self._transcripts.page(ref, more)
        items = tuple(messages[: query.limit])
        return MessagesPage(
            items=items,
            next_cursor=items[-1].id if len(messages) > query.limit else None,
        )

    async def history(self, ref: SessionRef, *, limit: int) -> History:
        """The newest ``limit`` messages; nothing was said yet in an unknown session."""
        check_session(ref)
        check_limit(limit)
        # One more than asked for tells whether older ones follow.
        recent = await self._transcripts.recent(ref, last=limit + 1)
        messages = recent.messages[-limit:]
        return History(
            user_id=recent.user_id,
            messages=messages,
            ttl=recent.ttl,
            next_cursor=messages[0].id if len(recent.messages) > limit else None,
        )

    async def context(self, ref: SessionRef, options: ContextOptions) -> ShownContext:
        """Raises SessionNotFound."""
        check_session(ref)
        check_options(options, "context")
        session = await self._sessions.get(ref)
        chosen = plan(options.over(session.document.context))
        recent = await self._transcripts.recent(ref, last=chosen.last)
        shown = tuple(window(chosen, recent.pinned, recent.messages))
        return ShownContext(
            strategy=chosen.strategy,
            messages=shown,
            left_out=max(0, session.message_count - len(shown)),
        )

    async def session(self, ref: SessionRef) -> Session:
        check_session(ref)
        return await self._sessions.get(ref)

    async def sessions(self, query: SessionQuery) -> SessionsPage:
        check_limit(query.limit)
        if query.user_id is not None:
            check_id(query.user_id, "user_id")
        return await self._sessions.newest(query)


def check_limit(limit: int) -> None:
    if not 1 <= limit <= PAGE_LIMIT_MAX:
        raise InvalidValue.of("limit", f"must be 1 to {PAGE_LIMIT_MAX}")
