"""Turns in process memory."""

import math
from typing import Final, Literal

import msgspec

from service.adapters.memory.store import Call, HeldSession, MemoryStore, check_durability
from service.core.stops import TurnStops
from service.domain.errors import RequestRunning, SessionBusy, TurnNotFound, TurnNotWaiting
from service.domain.ids import MessageId, TurnId
from service.domain.messages import PINNED_ROLES
from service.domain.sessions import SessionDocument, SessionRef
from service.ports import (
    WAIT_LOOK_MILLISECONDS,
    WAITERS_MAX,
    Begin,
    Begun,
    Finish,
    Finished,
    LeaseState,
    Once,
    Replayed,
    Resumption,
    TurnRecord,
    check_cost,
    needed,
)

TURNS_MAX: Final = 10_000
"""Turns that can be looked up, the newest."""


class MemoryTurns:
    """Turns in process memory."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    @property
    def stops(self) -> TurnStops:
        return self._store.stops

    async def begin(self, command: Begin) -> Begun | Replayed:
        store, ref = self._store, command.ref
        check_durability(command.durability)
        call = store.call(ref, command.once)
        if call is not None and call.state == "done":
            return Replayed(result=call.result, message_id=call.answer_id)
        resumes, answers = command.resumes, False
        if resumes is not None:
            call, answers = self._earlier_run(command, resumes, call)
        self._must_be_free(command, call)
        store.check_owner(ref, command.user_id)
        if resumes is not None and call is not None:
            self._check_goes_on(ref, call, resumes.calls_id if answers else None)
        store.must_have_room(ref, len(resumes.bodies) if resumes else 1)
        held = store.sessions.get(ref)
        check_cost(command, held.document if held else SessionDocument())

        session = store.claimed(ref, command.user_id)
        taken_up = self._taken_up(session, call)
        if resumes is not None and answers:
            store.say(ref, resumes.bodies)
        user_message_id = taken_up or store.say(ref, (command.body,))[0]
        turn_id = TurnId(call.turn_id) if call and taken_up else command.turn_id
        store.lease(session, command.lease_token)
        session.waiting.pop(command.lease_token, None)
        call = store.new_call(command.once)
        call.state, call.token, call.ids = "running", command.lease_token, (user_message_id,)
        call.turn_id = turn_id
        if resumes is not None:
            call.asked = resumes.asked
            call.fingerprint = _fingerprint(command, resumes)
        self._remember(ref, command.once, call)
        return Begun(
            user_message_id=user_message_id,
            turn_id=turn_id,
            history=store.recent(ref, needed(command, session.document).last, user_message_id),
        )

    async def renew(self, ref: SessionRef, lease_token: str) -> LeaseState:
        session = self._store.sessions.get(ref)
        if session is None or session.lease is None or session.lease.token != lease_token:
            return "lost"
        cancelled = session.lease.cancelled
        self._store.lease(session, lease_token).cancelled = cancelled
        return "cancelled" if cancelled else "held"

    async def find(
        self, ref: SessionRef, turn_id: TurnId, *, cancel: bool = False, asked: bool = False
    ) -> TurnRecord | None:
        call = self._store.turns.get((ref, turn_id))
        session = self._store.sessions.get(ref)
        if call is None or session is None or call.ids[0] < session.born_id:
            return None
        if call.expires_milliseconds <= self._store.now:
            return None
        if call.state in {"done", "failed"}:
            return TurnRecord(
                state="ended",
                user_message_id=call.ids[0],
                result=call.result,
                message_id=call.answer_id,
                cleared=call.ids[0] <= session.cleared_through,
                asked=call.asked if asked else b"",
            )
        return TurnRecord(
            state=self._running_state(session, call, cancel=cancel),
            user_message_id=call.ids[0],
            asked=call.asked if asked else b"",
        )

    def _running_state(
        self, session: HeldSession, call: Call, *, cancel: bool
    ) -> Literal["running", "cancelled", "interrupted"]:
        if call.ids[0] <= session.cleared_through:
            return "cancelled"
        lease = session.lease
        if lease and lease.token == call.token and lease.until_milliseconds > self._store.now:
            if cancel:
                lease.cancelled = True
                self._store.stops.tell(lease.token)
            return "running"
        # Told once, it stays so: its owner has no lease to end it with.
        call.state = "interrupted"
        if lease and lease.token == call.token:
            self._store.stops.tell(lease.token)
            session.lease = None
        return "interrupted"

    async def finish(self, command: Finish) -> Finished:
        return self._end(command, "done")

    async def fail(self, command: Finish) -> Finished:
        return self._end(command, "failed")

    def _end(self, command: Finish, state: str) -> Finished:
        store, ref = self._store, command.ref
        call = self._call_of(command)
        if call.token == command.lease_token and call.state in {"done", "failed"}:
            return Finished(message_id=call.answer_id, outcome="stored")
        session = store.sessions.get(ref)
        lease = session.lease if session else None
        if lease is None or lease.token != command.lease_token:
            # Without a lease the session was cleared or deleted; with another's it was taken over.
            taken = lease is not None and call.state != "cancelled"
            lost = taken or call.state == "interrupted"
            return Finished(message_id=None, outcome="lost" if lost else "cancelled")
        answer_id = store.say(ref, (command.body,))[0] if command.body else None
        store.sessions[ref].lease = None
        call.state, call.result, call.answer_id = state, command.result, answer_id
        call.asked = command.asked or call.asked
        return Finished(message_id=answer_id, outcome="stored")

    def _earlier_run(
        self, command: Begin, resumes: Resumption, call: Call | None
    ) -> tuple[Call, bool]:
        """What a turn goes on from, and whether its calls are answered for the first time.

        The turn is named by its latest call: the one that made the calls, or one with results of
        before. Raises TurnNotFound and TurnNotWaiting.
        """
        ref = command.ref
        run, session = self._store.turns.get((ref, command.turn_id)), self._store.sessions.get(ref)
        if run is None or session is None or run.ids[0] < session.born_id:
            raise TurnNotFound
        if run.expires_milliseconds <= self._store.now:
            raise TurnNotFound
        if run is call:
            return run, False
        answers = run.state == "done" and run.answer_id == resumes.calls_id is not None
        lease = session.lease
        runs = lease and lease.token == run.token and lease.until_milliseconds > self._store.now
        failed = run.state != "done" and not runs
        if not answers and not (failed and run.fingerprint == _fingerprint(command, resumes)):
            raise TurnNotWaiting
        return msgspec.structs.replace(run, token="", state="interrupted"), answers

    def _check_goes_on(self, ref: SessionRef, call: Call, calls_id: MessageId | None) -> None:
        """Raises TurnNotWaiting where the session was cleared or went on without the turn."""
        session = self._store.sessions[ref]
        since = [m for m in session.messages if calls_id is not None and m.id > calls_id]
        went_on = any(message.role not in PINNED_ROLES for message in since)
        if went_on or call.ids[0] <= session.cleared_through:
            raise TurnNotWaiting

    def _must_be_free(self, command: Begin, call: Call | None) -> None:
        session = self._store.sessions.get(command.ref)
        if session is None:
            return
        now, lease = self._store.now, session.lease
        if lease is None or lease.until_milliseconds <= now:
            goes_on = command.resumes is not None
            if goes_on or not self._others_come_first(session, command.lease_token):
                return
            left = 1000
        elif call is not None and call.token == lease.token:
            raise RequestRunning(turn_id=call.turn_id)
        else:
            left = lease.until_milliseconds - now
        known = command.lease_token in session.waiting
        if command.waits and (known or len(session.waiting) < WAITERS_MAX):
            session.waiting[command.lease_token] = now
        raise SessionBusy(retry_after_seconds=max(1, math.ceil(left / 1000)))

    def _others_come_first(self, session: HeldSession, token: str) -> bool:
        """First come, first served: whoever does not look any more is forgotten."""
        oldest = self._store.now - WAIT_LOOK_MILLISECONDS
        session.waiting = {
            name: looked
            for name, looked in session.waiting.items()
            if looked >= oldest or name == token
        }
        return next(iter(session.waiting), token) != token

    def _taken_up(self, session: HeldSession, call: Call | None) -> MessageId | None:
        """The user message of a failed or interrupted call, unless it was cleared away."""
        if call is None or call.ids[0] <= session.cleared_through:
            return None
        return call.ids[0]

    def _remember(self, ref: SessionRef, once: Once | None, call: Call) -> None:
        self._store.turns[ref, call.turn_id] = call
        while len(self._store.turns) > TURNS_MAX:
            self._store.turns.popitem(last=False)
        if once is None:
            self._store.unkeyed[call.token] = call
        else:
            self._store.remember(ref, once, call)

    def _call_of(self, command: Finish) -> Call:
        if command.once is None:
            return self._store.unkeyed.pop(command.lease_token, None) or self._store.new_call(None)
        return self._store.call(command.ref, command.once) or self._store.new_call(command.once)


def _fingerprint(command: Begin, resumes: Resumption) -> str:
    return command.once.fingerprint if command.once else resumes.fingerprint
