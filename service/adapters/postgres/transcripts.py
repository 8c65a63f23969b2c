"""Messages where PostgreSQL holds everything."""

from collections.abc import Sequence
from typing import Final, LiteralString

from msgspec import UNSET

from service.adapters.postgres.archive import find_page, find_pinned, find_session
from service.adapters.postgres.calls import (
    Call,
    find_record,
    keep_record,
    keyed_call,
    own_call,
)
from service.adapters.postgres.door import Connection, PostgresDoor
from service.adapters.postgres.keys import session_key
from service.adapters.postgres.session_rows import (
    existing,
    lock_or_make_session,
    lock_session,
    say,
)
from service.adapters.postgres.vectors import Worded, worded
from service.domain.context import BUFFER_MESSAGES_MAX, TOKENS_PAGE, Need
from service.domain.errors import ContextTooLarge, PreconditionFailed, SessionNotFound
from service.domain.ids import HIGHEST_ID, MessageId
from service.domain.messages import Message, decode_messages, id_of, newest, tokens_in
from service.domain.observations import MessagesAppended
from service.domain.sessions import SessionDocument, SessionRef, decode_document
from service.domain.summaries import decode_summary
from service.ports import (
    Append,
    Appended,
    Clock,
    Observer,
    PageQuery,
    Recent,
)

# A running turn loses its lease with what it was to answer.
CLEAR: Final[LiteralString] = """
WITH gone AS (
    DELETE FROM messages WHERE session_key = $1 AND tenant = $2 AND id <= $3
), freed AS (
    DELETE FROM turn_leases WHERE session_key = $1 AND tenant = $2
), ended AS (
    UPDATE calls SET asked = '' WHERE session_key = $1 AND tenant = $2 AND asked <> ''
)
UPDATE sessions
SET cleared_through = $3, active_id = $3, last_id = NULL, message_count = 0, summary = NULL,
    summary_through = '00000000-0000-0000-0000-000000000000'
WHERE session_key = $1 AND tenant = $2
"""


class PostgresTranscripts:
    """Transcripts in PostgreSQL alone."""

    def __init__(
        self, door: PostgresDoor, clock: Clock, observer: Observer, *, once_seconds: int
    ) -> None:
        self._door = door
        self._clock = clock
        self._observer = observer
        self._once_seconds = once_seconds

    async def append(self, command: Append) -> Appended:
        once = command.once
        call = (
            own_call(command.ref)
            if once is None
            else keyed_call(command.ref, once, self._once_seconds)
        )
        said = await worded(command.bodies)
        appended = await self._door.settled(lambda it: self._append(it, command, said, call))
        self._observer.observe(
            MessagesAppended(
                count=len(appended.ids), durability=appended.durability, replayed=appended.replayed
            )
        )
        return appended

    async def page(self, ref: SessionRef, query: PageQuery) -> list[Message]:
        async with self._door.connection() as connection:
            session = await find_session(connection, ref)
            if session is None:
                raise SessionNotFound
            texts = await find_page(connection, ref, query, above=session.cleared_through)
        return decode_messages(texts)

    async def recent(self, ref: SessionRef, need: Need, *, archive_only: bool = False) -> Recent:
        del archive_only  # There is nothing but the archive.
        # One snapshot: a clear beside it is seen in all of the answer or in none of it.
        async with (
            self._door.connection() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            session = await find_session(connection, ref)
            if session is None:
                return _nothing()
            messages, pinned = await read_newest(
                connection, ref, need, above=session.cleared_through
            )
        return Recent(
            exists=True,
            user_id=session.user_id,
            document=decode_document(session.document),
            messages=messages,
            pinned=pinned,
            ttl=None,
            summary=decode_summary(session.summary),
        )

    async def clear(self, ref: SessionRef) -> None:
        call = own_call(ref)
        await self._door.settled(lambda it: self._clear(it, call))

    async def _append(
        self, connection: Connection, command: Append, said: Sequence[Worded], call: Call
    ) -> Appended:
        row = await lock_or_make_session(connection, command.ref)
        record = await find_record(connection, call)
        if record is not None:
            replayed = command.once is not None
            return Appended(ids=record.ids, durability="archived", replayed=replayed)
        row.check_owner(command.user_id)
        if command.if_last_id is not UNSET and command.if_last_id != row.last_id:
            raise PreconditionFailed(row.last_id)

        ids = await say(
            connection,
            row,
            said,
            self._clock.milliseconds(),
            user_id=command.user_id,
        )
        await keep_record(connection, call, ids)
        return Appended(ids=ids, durability="archived")

    async def _clear(self, connection: Connection, call: Call) -> None:
        row = await lock_session(connection, call.ref)
        if await find_record(connection, call) is not None:
            return
        ids = existing(row).next_ids(1, self._clock.milliseconds())
        await connection.execute(CLEAR, session_key(call.ref), call.ref.tenant, *ids)
        await keep_record(connection, call, ids)


async def read_newest(
    connection: Connection,
    ref: SessionRef,
    need: Need,
    *,
    above: MessageId,
    before: MessageId | None = None,
) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """The newest messages in order, as many as needed, and the pinned ones before those.

    Raises ContextTooLarge where all of a very long session is asked for.
    """
    pinned = decode_messages(
        await find_pinned(connection, ref, above=above, below=before or HIGHEST_ID)
    )
    if need.tokens is not None:
        texts = await _read_tokens(connection, ref, need.tokens, above=above, before=before)
    else:
        limit = BUFFER_MESSAGES_MAX + 1 if need.last is None else need.last + len(pinned)
        query = PageQuery(limit=limit, descending=True, before=before)
        texts = await find_page(connection, ref, query, above=above)
        if need.last is None and len(texts) == limit:
            raise ContextTooLarge(
                f"The session has more than {BUFFER_MESSAGES_MAX} messages: use a window."
            )

    shown = newest(decode_messages(texts[::-1]), need.last)
    first = shown[0].id if shown else HIGHEST_ID
    return tuple(shown), tuple(message for message in pinned if message.id < first)


async def _read_tokens(
    connection: Connection,
    ref: SessionRef,
    tokens: int,
    *,
    above: MessageId,
    before: MessageId | None,
) -> list[bytes]:
    """The newest messages of so many tokens, newest first; at most BUFFER_MESSAGES_MAX."""
    found: list[bytes] = []
    left = tokens
    while left > 0 and len(found) < BUFFER_MESSAGES_MAX:
        query = PageQuery(limit=TOKENS_PAGE, descending=True, before=before)
        texts = await find_page(connection, ref, query, above=above)
        found += texts
        if len(texts) < TOKENS_PAGE:
            break
        left -= tokens_in(texts)
        before = id_of(texts[-1])
    return found


def _nothing() -> Recent:
    return Recent(
        exists=False,
        user_id=None,
        document=SessionDocument(),
        messages=(),
        pinned=(),
        ttl=None,
    )
