"""What is said, in process memory: the state behind the ports of this package.

Nothing here awaits, so each method is one step.
"""

from collections import OrderedDict
from typing import Final

import msgspec

from service.core.stops import TurnStops
from service.domain.errors import (
    DurabilityUnavailable,
    IdempotencyKeyReused,
    PreconditionFailed,
    SessionNotFound,
    TooLarge,
)
from service.domain.ids import ZERO_ID, MessageId, next_id
from service.domain.messages import PINNED_ROLES, Message, decode_messages, newest, with_id
from service.domain.sessions import SessionDocument, SessionRef
from service.domain.statistics import Counted, Place, count_messages
from service.domain.summaries import Summary
from service.ports import Clock, Once, Recent, Wanted

SESSION_MESSAGES_MAX: Final = 10_000
"""Messages that a session holds where nothing archives them."""


class Lease(msgspec.Struct, kw_only=True):
    token: str
    until_milliseconds: int
    cancelled: bool = False


class HeldSession(msgspec.Struct, kw_only=True):
    user_id: str | None
    document: SessionDocument
    born_id: MessageId
    active_id: MessageId
    cleared_through: MessageId = ZERO_ID
    messages: list[Message] = msgspec.field(default_factory=list[Message])
    lease: Lease | None = None
    waiting: dict[str, int] = msgspec.field(default_factory=dict[str, int])
    """Lease tokens in the order of their arrival, by their last look (milliseconds)."""
    summary: Summary | None = None


class Call(msgspec.Struct, kw_only=True):
    """A call that happens once: its state, and what a repeated one is answered."""

    fingerprint: str
    expires_milliseconds: int
    state: str = "done"
    token: str = ""
    turn_id: str = ""
    ids: tuple[MessageId, ...] = ()
    answer_id: MessageId | None = None
    result: bytes = b""
    asked: bytes = b""


class MemoryStore:
    """The sessions of one process, and the calls that were promised to happen once."""

    def __init__(self, clock: Clock, *, once_seconds: int, lease_seconds: float) -> None:
        self._clock = clock
        self._once_milliseconds = once_seconds * 1000
        self._lease_milliseconds = round(lease_seconds * 1000)
        self.sessions: dict[SessionRef, HeldSession] = {}
        self.counts: dict[Place, Counted] = {}
        self.stops = TurnStops(listening=True)
        self._last_ids: dict[SessionRef, MessageId] = {}
        self._calls: dict[tuple[SessionRef, str, str], Call] = {}
        self.turns: OrderedDict[tuple[SessionRef, str], Call] = OrderedDict()
        """By their ids."""
        self.unkeyed: dict[str, Call] = {}
        """Running ones without a client's key, by their leases."""

    @property
    def now(self) -> int:
        return self._clock.milliseconds()

    def new_id(self, ref: SessionRef) -> MessageId:
        """Above every id that the session ever had, also before it was deleted."""
        fresh = next_id(self._last_ids.get(ref), self.now)
        self._last_ids[ref] = fresh
        return fresh

    def existing(self, ref: SessionRef) -> HeldSession:
        session = self.sessions.get(ref)
        if session is None:
            raise SessionNotFound
        return session

    def claimed(self, ref: SessionRef, user_id: str | None) -> HeldSession:
        """The session, made if needed; it belongs to the first user it is given."""
        session = self.sessions.get(ref)
        if session is None:
            earlier = self._last_ids.get(ref, ZERO_ID)
            born = self.new_id(ref)
            session = self.sessions[ref] = HeldSession(
                user_id=user_id,
                document=SessionDocument(),
                born_id=born,
                active_id=born,
                cleared_through=earlier,
            )
        self.check_owner(ref, user_id)
        session.user_id = session.user_id or user_id
        return session

    def say(self, ref: SessionRef, bodies: tuple[bytes, ...]) -> tuple[MessageId, ...]:
        session = self.sessions[ref]
        texts = [with_id(self.new_id(ref), body) for body in bodies]
        messages = decode_messages(texts)
        session.messages += messages
        said = ((message.id, body) for message, body in zip(messages, bodies, strict=True))
        count_messages(ref.tenant, session.user_id, ref.session_id, said, self.counts)
        session.active_id = messages[-1].id
        return tuple(message.id for message in messages)

    def must_have_room(self, ref: SessionRef, count: int) -> None:
        session = self.sessions.get(ref)
        held = len(session.messages) if session else 0
        if held + count > SESSION_MESSAGES_MAX:
            raise TooLarge.of(
                "messages", f"a session holds at most {SESSION_MESSAGES_MAX} messages here"
            )

    def check_owner(self, ref: SessionRef, user_id: str | None) -> None:
        """Another user's session is not found."""
        session = self.sessions.get(ref)
        if session is not None and user_id is not None and session.user_id not in {None, user_id}:
            raise SessionNotFound

    def check_last(self, ref: SessionRef, user_id: str | None, expected: MessageId | None) -> None:
        """Raises PreconditionFailed; another user's session is not found, whatever its last is."""
        self.check_owner(ref, user_id)
        session = self.sessions.get(ref)
        last_id = session.messages[-1].id if session and session.messages else None
        if last_id != expected:
            raise PreconditionFailed(last_id)

    def call(self, ref: SessionRef, once: Once | None) -> Call | None:
        """The record of an earlier call with this key. Raises IdempotencyKeyReused."""
        if once is None:
            return None
        found = self._calls.get((ref, once.operation, once.key))
        if found is None or found.expires_milliseconds <= self.now:
            return None
        if found.fingerprint != once.fingerprint:
            raise IdempotencyKeyReused
        return found

    def remember(self, ref: SessionRef, once: Once | None, call: Call) -> None:
        if once is not None:
            self._calls[ref, once.operation, once.key] = call

    def new_call(self, once: Once | None) -> Call:
        return Call(
            fingerprint=once.fingerprint if once else "",
            expires_milliseconds=self.now + self._once_milliseconds,
        )

    def forget(self, ref: SessionRef) -> None:
        session = self.existing(ref)
        session.cleared_through = session.active_id = self.new_id(ref)
        session.messages = []
        if session.lease is not None:
            self.stops.tell(session.lease.token)
        session.lease = None
        session.summary = None
        for (of, _), call in self.turns.items():
            if of == ref:
                # It goes on no more.
                call.asked = b""

    def cancel_calls(self, ref: SessionRef) -> None:
        """Records of calls hold no answers any more: a turn that is repeated runs again."""
        for place, call in self._calls.items():
            if place[0] == ref and call.turn_id:
                call.state, call.result, call.answer_id = "cancelled", b"", None
        self._forget_turns(ref)

    def _forget_turns(self, ref: SessionRef) -> None:
        for place in [place for place in self.turns if place[0] == ref]:
            call = self.turns.pop(place)
            call.state, call.result, call.answer_id, call.asked = "cancelled", b"", None, b""

    def erase(self, ref: SessionRef) -> int:
        """The session and the records of its calls; how many records."""
        self.forget(ref)
        del self.sessions[ref]
        # Ids go up with the clock: what comes next is above them without being reminded.
        del self._last_ids[ref]
        records = [place for place in self._calls if place[0] == ref]
        for place in records:
            del self._calls[place]
        self._forget_turns(ref)
        return len(records)

    def recent(self, ref: SessionRef, last: int | None, before: MessageId | None) -> Recent:
        session = self.sessions.get(ref)
        if session is None:
            return Recent(
                exists=False,
                user_id=None,
                document=SessionDocument(),
                messages=(),
                pinned=(),
                ttl=None,
            )
        said = [m for m in session.messages if before is None or m.id < before]
        shown = newest(said, last)
        cut = len(said) - len(shown)
        return Recent(
            exists=True,
            user_id=session.user_id,
            document=session.document,
            messages=tuple(shown),
            pinned=tuple(m for m in said[:cut] if m.role in PINNED_ROLES),
            ttl=None,
            summary=session.summary,
        )

    def lease(self, session: HeldSession, token: str) -> Lease:
        until = self.now + self._lease_milliseconds
        session.lease = Lease(token=token, until_milliseconds=until)
        return session.lease


def check_durability(wanted: Wanted) -> None:
    """Raises DurabilityUnavailable for what process memory cannot give."""
    if wanted != "journaled":
        raise DurabilityUnavailable("This store keeps everything in process memory.")
