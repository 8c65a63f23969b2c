"""Dead letters, for operators: what they are, and what to do about them.

Neither messages nor names of sessions and users are shown: a letter says the key under which the
archive has its session, and whoever may read rows there finds the rest.
"""

from datetime import datetime
from typing import Any, Final

import msgspec
from litestar import Request, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery

from service.core.dead_letters import PAGE_MAX, DeadLetterDesk
from service.domain.errors import InvalidValue
from service.domain.ids import time_of
from service.domain.journal import DeadLetter
from service.domain.sessions import session_key

PAGE_DEFAULT: Final = 50

Desk = NamedDependency[DeadLetterDesk]


class LetterView(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    """Of the entry; a message's own."""
    shard: int
    kind: str | None
    """Message, document or summary; null for what cannot be read."""
    session_key: str | None
    """As in PostgreSQL: the session's and its tenant's names are not shown."""
    bytes: int
    reason: str
    """SQLSTATE, or `undecodable`, `unreadable`."""
    first_seen: datetime
    last_attempt: datetime
    attempts: int


class LettersView(msgspec.Struct, frozen=True, kw_only=True):
    items: list[LetterView]
    next_cursor: str | None


class RetriedView(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    outcome: str
    """archived or refused."""
    reason: str | None


@get("/ops/dead-letters")
async def list_letters(
    desk: Desk, cursor: FromQuery[str | None] = None, limit: FromQuery[int] = PAGE_DEFAULT
) -> LettersView:
    """Entries that the archive refused for their content, by id."""
    if not 1 <= limit <= PAGE_MAX:
        raise InvalidValue.of("limit", f"must be 1 to {PAGE_MAX}")
    letters = await desk.page(after=cursor, limit=limit)
    more = len(letters) == limit
    return LettersView(
        items=[letter_view(letter) for letter in letters],
        next_cursor=letters[-1].id if more else None,
    )


@get("/ops/dead-letters/{letter_id:str}")
async def show_letter(desk: Desk, letter_id: FromPath[str]) -> LetterView:
    return letter_view(await desk.find(letter_id))


@post("/ops/dead-letters/{letter_id:str}/retry", status_code=200)
async def retry_letter(
    request: Request[Any, Any, Any], desk: Desk, letter_id: FromPath[str]
) -> RetriedView:
    """Try again to archive it, in its place. 503 where the archive is away: no attempt then."""
    reason = await desk.retry(letter_id, by=_asker(request))
    outcome = "archived" if reason is None else "refused"
    return RetriedView(id=letter_id, outcome=outcome, reason=reason)


@delete("/ops/dead-letters/{letter_id:str}")
async def drop_letter(
    request: Request[Any, Any, Any], desk: Desk, letter_id: FromPath[str]
) -> None:
    """Give it up: a message is gone then, for its readers too."""
    await desk.drop(letter_id, by=_asker(request))


def letter_view(letter: DeadLetter) -> LetterView:
    entry = letter.entry
    return LetterView(
        id=letter.id,
        shard=letter.shard,
        kind=entry.kind if entry else None,
        session_key=str(session_key(entry.ref)) if entry else None,
        bytes=letter.bytes,
        reason=letter.reason,
        first_seen=time_of(letter.first_seen_milliseconds),
        last_attempt=time_of(letter.last_attempt_milliseconds),
        attempts=letter.attempts,
    )


def _asker(request: Request[Any, Any, Any]) -> str:
    return f"http {request.client.host}" if request.client else "http"
