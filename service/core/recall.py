"""Recall: reading conversations back."""

from datetime import datetime
from typing import Final

import msgspec

from service.core.prompting import Given, Offer, ProfileText, Prompting, Shown
from service.core.recording import check_session
from service.domain.context import (
    ContextOptions,
    LeftOutReason,
    Need,
    Plan,
    Strategy,
    check_options,
    plan,
)
from service.domain.errors import InvalidValue, SessionNotFound
from service.domain.ids import (
    HIGHEST_ID,
    ZERO_ID,
    MessageId,
    check_id,
    first_id_at,
    last_id_before,
    milliseconds_of,
)
from service.domain.messages import Message
from service.domain.sessions import Session, SessionRef
from service.ports import PageQuery, Recent, SessionQuery, Sessions, SessionsPage, Transcripts

PAGE_LIMIT_MAX: Final = 1000
WAIT_SECONDS_MAX: Final = 15.0
"""Longest wait for the archive; below the time that any request may take."""


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
    shown: Shown
    left_out: int
    reason: LeftOutReason | None


class Recall:
    """Pages, history, context and sessions."""

    def __init__(
        self,
        transcripts: Transcripts,
        sessions: Sessions,
        prompting: Prompting,
        *,
        model: str,
        profile_text: ProfileText,
        offer_summary: Offer,
    ) -> None:
        self._transcripts = transcripts
        self._sessions = sessions
        self._prompting = prompting
        self._model = model
        self._profile_text = profile_text
        self._offer_summary = offer_summary

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

    async def history(self, ref: SessionRef, *, limit: int, archive_only: bool = False) -> History:
        """The newest ``limit`` messages; nothing was said yet in an unknown session."""
        check_session(ref)
        check_limit(limit)
        # One more than asked for tells whether older ones follow.
        recent = await self._transcripts.recent(
            ref, Need(last=limit + 1), archive_only=archive_only
        )
        messages = recent.messages[-limit:]
        return History(
            user_id=recent.user_id,
            messages=messages,
            ttl=recent.ttl,
            next_cursor=messages[0].id if len(recent.messages) > limit else None,
        )

    async def context(self, ref: SessionRef, options: ContextOptions) -> ShownContext:
        """Counted for the model that answers by default.

        Raises SessionNotFound, and ContextTooLarge where what is never left out is over the budget.
        """
        check_session(ref)
        check_options(options, "")
        recent = await self._transcripts.recent(ref, plan(options).need)
        if not recent.exists:
            raise SessionNotFound
        chosen = plan(options.over(recent.document.context))
        if chosen.need != plan(options).need:
            recent = await self._transcripts.recent(ref, chosen.need)
        profile = None
        if chosen.profile and recent.user_id is not None:
            profile = await self._profile_text(ref.tenant, recent.user_id)
        shown = await self._prompting.shown(chosen, recent, Given(profile=profile), self._model)
        # By the session's own budget alone: what a reader asks for is no reason to summarise more.
        own = plan(recent.document.context or ContextOptions())
        if shown.wants_summary and own.strategy == "summary" and own.need == chosen.need:
            self._offer_summary(ref, own, shown.beside)
        left_out = max(0, await self._count(ref, recent) - len(shown.messages))
        return ShownContext(
            strategy=chosen.strategy,
            shown=shown,
            left_out=left_out,
            reason=(shown.reason or _beyond(chosen)) if left_out else None,
        )

    async def _count(self, ref: SessionRef, recent: Recent) -> int:
        if recent.message_count is not None:
            return recent.message_count
        return (await self._sessions.get(ref)).message_count

    async def session(self, ref: SessionRef, *, wait_seconds: float = 0) -> Session:
        """Waits until all its messages are archived, or so long. Raises SessionNotFound."""
        check_session(ref)
        check_wait(wait_seconds)
        return await self._sessions.get(ref, wait_seconds=wait_seconds)

    async def sessions(self, query: SessionQuery) -> SessionsPage:
        check_limit(query.limit)
        if query.user_id is not None:
            check_id(query.user_id, "user_id")
        return await self._sessions.newest(query)


def _beyond(chosen: Plan) -> LeftOutReason:
    """Why messages are left out that were not even read."""
    match chosen.strategy:
        case "tokens" | "summary":
            return chosen.strategy
        case "buffer" | "window":
            return "window"


def check_limit(limit: int) -> None:
    if not 1 <= limit <= PAGE_LIMIT_MAX:
        raise InvalidValue.of("limit", f"must be 1 to {PAGE_LIMIT_MAX}")


def check_wait(seconds: float) -> None:
    """Raises InvalidValue, also for what is no number."""
    if not 0 <= seconds <= WAIT_SECONDS_MAX:
        raise InvalidValue.of("timeout_seconds", f"must be 0 to {WAIT_SECONDS_MAX:g}")


def between(query: PageQuery, start: datetime | None, end: datetime | None) -> PageQuery:
    """The query cut to messages from ``start``, inclusive, to ``end``, exclusive.

    Ids carry their time, so a range of time is a range of ids. Raises InvalidValue where the range
    is empty the wrong way round or a time has no zone.
    """
    after, before = time_bounds(start, end)
    if after is not None:
        after = max(query.after or ZERO_ID, after)
    if before is not None:
        before = min(query.before or HIGHEST_ID, before)
    return msgspec.structs.replace(query, after=after or query.after, before=before or query.before)


def time_bounds(
    start: datetime | None, end: datetime | None
) -> tuple[MessageId | None, MessageId | None]:
    """The exclusive ids between which the messages of a range of time are.

    Raises InvalidValue where the range is empty the wrong way round or a time has no zone.
    """
    first = None if start is None else milliseconds_of(start, "from")
    last = None if end is None else milliseconds_of(end, "to")
    if first is not None and last is not None and first >= last:
        raise InvalidValue.of("to", "must be later than from")
    return (
        None if first is None else last_id_before(first),
        None if last is None else first_id_at(last),
    )
