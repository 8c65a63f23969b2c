"""Turns in Redis: the first and the last step of a turn are one script each."""

import math
from typing import Any, Final

from service.adapters.redis.client import RedisDoor, Script
from service.adapters.redis.durable import DurableRuns
from service.adapters.redis.replies import SessionArguments, need_word
from service.adapters.redis.stops import RedisStops
from service.core.stops import TurnStops
from service.domain.context import ContextOptions, plan
from service.domain.errors import (
    ContextTooLarge,
    RequestRunning,
    SessionBusy,
    TurnNotFound,
    TurnNotWaiting,
)
from service.domain.ids import MessageId, TurnId, random_bits
from service.domain.sessions import SessionRef
from service.ports import (
    WAIT_LOOK_MILLISECONDS,
    WAITERS_MAX,
    Begin,
    Cold,
    Finish,
    Finished,
    HotBegun,
    LeaseState,
    Once,
    Replayed,
    Resumption,
    TurnRecord,
)

BEGIN: Final = Script("begin", of_session=True)
RENEW: Final = Script("renew", of_session=True)
FINISH: Final = Script("finish", of_session=True)
TURN: Final = Script("turn", of_session=True)

UNKEYED_SECONDS: Final = 300
"""How long a turn without a client's key is remembered, for the service's own repeats: longer than
any turn."""


class RedisTurns:
    """HotTurns in Redis."""

    def __init__(
        self,
        door: RedisDoor,
        durable: DurableRuns,
        arguments: SessionArguments,
        listener: RedisStops,
        *,
        once_seconds: int,
        lease_seconds: float,
    ) -> None:
        self._door = door
        self._durable = durable
        self._arguments = arguments
        self._once_seconds = once_seconds
        self._lease_milliseconds = round(lease_seconds * 1000)
        self._listener = listener

    @property
    def stops(self) -> TurnStops:
        return self._listener.stops

    async def begin(self, command: Begin, *, incomplete_ok: bool) -> HotBegun | Replayed | Cold:
        once = command.once
        await self._durable.check(command.durability)
        words = [
            *self._arguments.shared(command.ref),
            command.user_id or "",
            _fingerprint(command),
            self._record_milliseconds(once, goes_on=command.resumes is not None),
            command.lease_token,
            self._lease_milliseconds,
            command.turn_id,
            *_history_words(command.options),
            int(incomplete_ok),
            command.cost,
            *_budget_words(command.options),
            command.body,
            random_bits(),
            int(command.waits),
            WAIT_LOOK_MILLISECONDS,
            WAITERS_MAX,
            self._listener.channel,
            *_resumption_words(command.resumes),
        ]
        names = self._arguments.keys
        places = (names.turn(command.ref, command.turn_id), names.waiting(command.ref))
        keys = [*self._keys(command.ref, once, command.lease_token), *places]
        status, *rest = await self._door.run(BEGIN, keys, words)
        match status:
            case b"begun":
                return HotBegun(
                    user_message_id=MessageId(rest[0].decode()),
                    turn_id=TurnId(rest[2].decode()),
                    state=self._arguments.state(rest[1]),
                )
            case b"replayed":
                if command.durability == "fsynced":
                    await self._durable.run(BEGIN, keys, words, "fsynced")
                answer = rest[1].decode()
                return Replayed(result=rest[0], message_id=MessageId(answer) if answer else None)
            case b"cold":
                return Cold(state=self._arguments.state(rest[0]))
            case _:
                if status == b"over":
                    budget = int(rest[0])
                    raise ContextTooLarge.over(command.cost - budget, budget)
                raise self._refusal(status, rest)

    async def renew(self, ref: SessionRef, lease_token: str) -> LeaseState:
        words = [*self._arguments.shared(ref), lease_token, self._lease_milliseconds]
        keys = self._arguments.keys.session(ref).listed()
        reply = await self._door.run(RENEW, keys, words)
        match reply[0]:
            case b"renewed":
                return "held"
            case b"cancelled":
                return "cancelled"
            case _:
                return "lost"

    async def find(
        self, ref: SessionRef, turn_id: TurnId, *, cancel: bool = False, asked: bool = False
    ) -> TurnRecord | None:
        names = self._arguments.keys
        keys = [*names.session(ref).listed(), names.turn(ref, turn_id)]
        words = [*self._arguments.shared(ref), turn_id, int(cancel), int(asked)]
        status, *rest = await self._door.run(TURN, keys, words)
        match status.decode():
            case "ended":
                message, kept, result, answer, cleared = rest
                return TurnRecord(
                    state="ended",
                    user_message_id=MessageId(message.decode()),
                    result=result,
                    message_id=MessageId(answer.decode()) if answer else None,
                    cleared=bool(cleared),
                    asked=kept,
                )
            case "running" | "cancelled" | "interrupted" as state:
                message, kept = rest
                return TurnRecord(
                    state=state, user_message_id=MessageId(message.decode()), asked=kept
                )
            case _:
                return None

    async def finish(self, command: Finish) -> Finished:
        return await self._end(command, "done")

    async def fail(self, command: Finish) -> Finished:
        return await self._end(command, "failed")

    async def _end(self, command: Finish, state: str) -> Finished:
        words = [
            *self._arguments.shared(command.ref),
            command.lease_token,
            self._record_milliseconds(
                command.once, goes_on=command.resumed or command.asked != b""
            ),
            state,
            command.result,
            command.body or b"",
            random_bits(),
            command.asked,
        ]
        keys = self._keys(command.ref, command.once, command.lease_token)
        status, *rest = await self._durable.run(FINISH, keys, words, command.durability)
        match status:
            case b"stored":
                answer = rest[0].decode()
                message_id = MessageId(answer) if answer else None
                return Finished(message_id=message_id, outcome="stored")
            case b"cancelled":
                return Finished(message_id=None, outcome="cancelled")
            case b"lost":
                return Finished(message_id=None, outcome="lost")
            case _:
                raise self._refusal(status, rest)

    def _refusal(self, status: bytes, rest: list[Any]) -> Exception:
        match status:
            case b"busy":
                return SessionBusy(retry_after_seconds=max(1, math.ceil(rest[0] / 1000)))
            case b"running":
                return RequestRunning(turn_id=rest[0].decode())
            case b"missing":
                return TurnNotFound()
            case b"not_waiting":
                return TurnNotWaiting()
            case _:
                return self._arguments.refusal(status)

    def _record_milliseconds(self, once: Once | None, *, goes_on: bool) -> int:
        """A turn that waits for results of tools, or has got some, is remembered as with a key."""
        if once is None and not goes_on:
            return UNKEYED_SECONDS * 1000
        return max(self._once_seconds, UNKEYED_SECONDS) * 1000

    def _keys(self, ref: SessionRef, once: Once | None, lease_token: str) -> list[str]:
        names = self._arguments.keys
        record = names.once(
            ref, once.operation if once else "op", once.key if once else lease_token
        )
        return [*names.session(ref).listed(), record]


def _fingerprint(command: Begin) -> str:
    if command.once is not None:
        return command.once.fingerprint
    return command.resumes.fingerprint if command.resumes else "-"


def _resumption_words(resumes: Resumption | None) -> list[str | bytes | int]:
    if resumes is None:
        return [0]
    said = [word for body in resumes.bodies for word in (body, random_bits())]
    return [1, resumes.calls_id or "", resumes.asked, *said]


def _history_words(options: ContextOptions) -> tuple[str, str]:
    """How much history, and whether the session's own context decides before that."""
    need = need_word(plan(options).need)
    if options.strategy is None and not options.decides:
        return need, "1"
    # The strategy is the caller's, and the messages of a window perhaps the session's. Those of a
    # budget come with the budget.
    return need, "window" if options.strategy == "window" and options.last is None else "0"


def _budget_words(options: ContextOptions) -> tuple[int | str, int]:
    """The token budget, and whether the session's own one decides before that."""
    if options.decides or options.strategy == "window":
        return plan(options).max_tokens or "", 0
    return plan(options).max_tokens or "", 1
