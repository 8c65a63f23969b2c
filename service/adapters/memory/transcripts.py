"""Transcripts and sessions in process memory."""

from msgspec import UNSET

from service.adapters.memory.store import HeldSession, MemoryStore, check_durability
from service.domain.context import Need
from service.domain.errors import InvalidValue, SessionExists
from service.domain.ids import ZERO_ID, MessageId, id_time
from service.domain.messages import Message
from service.domain.sessions import Session, SessionDocument, SessionRef
from service.domain.summaries import Summary
from service.ports import (
    Append,
    Appended,
    Create,
    Created,
    PageQuery,
    Recent,
    SessionQuery,
    SessionsPage,
)


class MemoryTranscripts:
    """Transcripts in process memory."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    async def append(self, command: Append) -> Appended:
        store, ref = self._store, command.ref
        check_durability(command.durability)
        earlier = store.call(ref, command.once)
        if earlier is not None:
            return Appended(ids=earlier.ids, durability="volatile", replayed=True)
        store.must_have_room(ref, len(command.bodies))
        if command.if_last_id is not UNSET:
            store.check_last(ref, command.user_id, command.if_last_id)
        store.claimed(ref, command.user_id)
        call = store.new_call(command.once)
        call.ids = store.say(ref, command.bodies)
        store.remember(ref, command.once, call)
        return Appended(ids=call.ids, durability="volatile")

    async def page(self, ref: SessionRef, query: PageQuery) -> list[Message]:
        if query.archive_only:
            raise _no_archive()
        found = [
            message
            for message in self._store.existing(ref).messages
            if (query.after is None or message.id > query.after)
            and (query.before is None or message.id < query.before)
            and (query.role is None or message.role == query.role)
        ]
        if query.descending:
            found.reverse()
        return found[: query.limit]

    async def recent(self, ref: SessionRef, need: Need, *, archive_only: bool = False) -> Recent:
        if archive_only:
            raise _no_archive()
        return self._store.recent(ref, need.last, None)

    async def clear(self, ref: SessionRef) -> None:
        self._store.forget(ref)


class MemorySessions:
    """Sessions in process memory."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    async def create(self, command: Create) -> Created:
        store, ref = self._store, command.ref
        earlier = store.call(ref, command.once)
        if earlier is not None:
            return Created(born_id=earlier.ids[0], ttl=None, replayed=True)
        if ref in store.sessions:
            raise SessionExists("A session with this id exists.")
        held = store.claimed(ref, command.user_id)
        held.document = command.document
        call = store.new_call(command.once)
        call.ids = (held.born_id,)
        store.remember(ref, command.once, call)
        return Created(born_id=held.born_id, ttl=None)

    async def get(self, ref: SessionRef, *, wait_seconds: float = 0) -> Session:
        del wait_seconds  # There is no archive to wait for.
        return _session(ref, self._store.existing(ref))

    async def newest(self, query: SessionQuery) -> SessionsPage:
        found = [
            _session(ref, held)
            for ref, held in self._store.sessions.items()
            if ref.tenant == query.tenant
            and (query.user_id is None or held.user_id == query.user_id)
            and (query.before is None or held.active_id < query.before)
        ]
        found.sort(key=lambda session: session.active_id, reverse=True)
        shown = tuple(found[: query.limit])
        more = len(found) > query.limit
        return SessionsPage(items=shown, next_before=shown[-1].active_id if more else None)

    async def replace(self, ref: SessionRef, old: SessionDocument, new: SessionDocument) -> bool:
        held = self._store.existing(ref)
        if held.document != old:
            return False
        held.document = new
        held.active_id = self._store.new_id(ref)
        return True

    async def summarise(self, ref: SessionRef, old: MessageId | None, summary: Summary) -> bool:
        held = self._store.existing(ref)
        seen = held.summary.through_id if held.summary else None
        if seen != old or summary.through_id <= max(held.cleared_through, old or ZERO_ID):
            return False
        if summary.from_id < held.born_id:
            # Of an erased session of this name.
            return False
        held.summary = summary
        return True

    async def delete(self, ref: SessionRef) -> None:
        self._store.forget(ref)
        self._store.cancel_calls(ref)
        del self._store.sessions[ref]


def _no_archive() -> InvalidValue:
    return InvalidValue.of("consistency", "this store has no archive")


def _session(ref: SessionRef, held: HeldSession) -> Session:
    last_id = held.messages[-1].id if held.messages else None
    return Session(
        id=ref.session_id,
        user_id=held.user_id,
        document=held.document,
        created_at=id_time(held.born_id),
        active_id=held.active_id,
        message_count=len(held.messages),
        last_id=last_id,
        archived_through=None,
        ttl=None,
    )
