"""Exporting: all that is kept of a user, piece by piece, in bounded memory."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from datetime import datetime
from typing import Final

import msgspec

from service.domain.errors import SessionNotFound, UserNotFound
from service.domain.ids import check_id, time_of
from service.domain.messages import Message
from service.domain.profiles import Profile
from service.domain.sessions import Session, SessionRef
from service.ports import Clock, PageQuery, Sessions, Transcripts, UserSessions

PAGE: Final = 50
"""Messages that are held at once."""


ReadProfile = Callable[[str, str], Awaitable[Profile | None]]


class UserPiece(msgspec.Struct, frozen=True, kw_only=True):
    """The first piece: whose export it is, and as of when."""

    user_id: str
    exported_at: datetime


class MessagesPiece(msgspec.Struct, frozen=True, kw_only=True):
    session_id: str
    messages: tuple[Message, ...]


class EndPiece(msgspec.Struct, frozen=True, kw_only=True):
    """The last piece: without it the export is not whole."""

    sessions: int
    messages: int


Piece = UserPiece | Profile | Session | MessagesPiece | EndPiece


class Exporting:
    """Giving a user all that is kept of them.

    A session is exported as it stood when its turn came: what is said in it later is left out.
    """

    def __init__(
        self,
        user_sessions: UserSessions,
        sessions: Sessions,
        transcripts: Transcripts,
        read_profile: ReadProfile,
        clock: Clock,
    ) -> None:
        self._user_sessions = user_sessions
        self._sessions = sessions
        self._transcripts = transcripts
        self._read_profile = read_profile
        self._clock = clock

    async def export(self, tenant: str, user_id: str) -> AsyncGenerator[Piece]:
        """The pieces, after it is known that there are any. Raises UserNotFound."""
        check_id(user_id, "user_id")
        profile = await self._read_profile(tenant, user_id)
        if profile is None and not await self._is_known(tenant, user_id):
            raise UserNotFound
        return self._pieces(tenant, user_id, profile)

    async def _is_known(self, tenant: str, user_id: str) -> bool:
        async with aclosing(self._user_sessions.walk(tenant, user_id)) as refs:
            async for _ in refs:
                return True
        return False

    async def _pieces(
        self, tenant: str, user_id: str, profile: Profile | None
    ) -> AsyncGenerator[Piece]:
        exported_at = time_of(self._clock.milliseconds())
        yield UserPiece(user_id=user_id, exported_at=exported_at)
        if profile is not None:
            yield profile
        sessions = messages = 0
        async with aclosing(self._user_sessions.walk(tenant, user_id)) as refs:
            async for ref in refs:
                session = await self._find(ref, user_id)
                if session is None:
                    continue
                yield session
                sessions += 1
                async with aclosing(self._messages(ref, session)) as pages:
                    async for page in pages:
                        yield MessagesPiece(session_id=ref.session_id, messages=page)
                        messages += len(page)
        yield EndPiece(sessions=sessions, messages=messages)

    async def _find(self, ref: SessionRef, user_id: str) -> Session | None:
        """None where it was deleted meanwhile, or is another's by now."""
        try:
            session = await self._sessions.get(ref)
        except SessionNotFound:
            return None
        return session if session.user_id == user_id else None

    async def _messages(
        self, ref: SessionRef, session: Session
    ) -> AsyncGenerator[tuple[Message, ...]]:
        """Up to the last one that the session had: one made anew in its place has later ids."""
        after, last_id = None, session.last_id
        while last_id is not None and (after is None or after < last_id):
            try:
                page = await self._transcripts.page(ref, PageQuery(limit=PAGE, after=after))
            except SessionNotFound:
                return
            shown = tuple(message for message in page if message.id <= last_id)
            if shown:
                yield shown
            if len(shown) < PAGE:
                return
            after = shown[-1].id
