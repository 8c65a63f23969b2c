"""Resuming: a turn that made calls of tools goes on with their results."""

from collections.abc import Sequence
from typing import Final

import msgspec

from service.core.chat_request import Asked, ChatRequest, GoesOn
from service.core.counting import Counting
from service.core.recording import check_session
from service.core.running_turn import recorded_turn
from service.domain.errors import InvalidValue, TurnNotFound, TurnNotWaiting
from service.domain.ids import ID_BYTES_MAX, TurnId, check_id
from service.domain.messages import Content, MessageBody, check_message, encode_body
from service.domain.sessions import SessionRef
from service.domain.turns import Turn
from service.ports import Once, Resumption, Turns

TURN_BYTES_MAX: Final = 8 * 1024 * 1024
"""Of what is said in one turn, tools and instructions included: it is kept while the turn waits."""
FIELD: Final = "results"


class ToolResult(msgspec.Struct, frozen=True, kw_only=True):
    tool_call_id: str
    content: Content


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """Results for all calls that a turn waits for, in any order."""

    ref: SessionRef
    turn_id: TurnId
    results: Sequence[ToolResult]
    fingerprint: str
    """Tells whether a repeated call brings the same."""
    once: Once | None


class Resuming:
    """Makes a turn's request anew, with what was said in it since."""

    def __init__(self, turns: Turns, counting: Counting, *, message_bytes_max: int) -> None:
        self._turns = turns
        self._counting = counting
        self._message_bytes_max = message_bytes_max

    async def request(self, given: Results) -> ChatRequest:
        """For Chat: the turn as it was asked, going on with the results.

        A tool that the caller demanded was called: from here on the model chooses. Raises
        TurnNotFound, TurnNotWaiting, and InvalidValue naming the field at fault.
        """
        check_session(given.ref)
        check_id(given.turn_id, "turn_id")
        bodies = self._checked(given)
        record = await self._turns.find(given.ref, given.turn_id, asked=True)
        if record is None:
            raise TurnNotFound
        if not record.asked:
            raise TurnNotWaiting
        asked = msgspec.json.decode(record.asked, type=Asked)
        turn = recorded_turn(given.ref.session_id, given.turn_id, record)
        calls, unfit = _calls(turn), None
        if calls:
            unfit = _misfit(bodies, calls)
            if given.once is None and unfit is not None:
                raise unfit
        waits = bool(calls) and unfit is None
        if waits:
            in_order = sorted(bodies, key=lambda body: calls.index(body.tool_call_id or ""))
            bodies = await self._counting.all_counted(in_order)
            asked = msgspec.structs.replace(asked, said=(*asked.said, *bodies))
        if asked.tool_choice != "none":
            asked = msgspec.structs.replace(asked, tool_choice=None)
        kept = msgspec.json.encode(asked)
        if len(kept) > TURN_BYTES_MAX:
            raise InvalidValue.of(FIELD, f"make the turn longer than {TURN_BYTES_MAX} bytes")
        resumption = Resumption(
            calls_id=record.message_id if waits else None,
            bodies=tuple(map(encode_body, bodies)),
            fingerprint=given.fingerprint,
            asked=kept,
        )
        return ChatRequest(
            ref=given.ref,
            once=given.once,
            goes_on=GoesOn(turn_id=given.turn_id, resumption=resumption, unfit=unfit),
            **{name: getattr(asked, name) for name in Asked.__struct_fields__},
        )

    def _checked(self, given: Results) -> list[MessageBody]:
        if not given.results:
            raise InvalidValue.of(FIELD, "must not be empty")
        bodies: list[MessageBody] = []
        for place, result in enumerate(given.results):
            body = MessageBody(
                role="tool",
                content=result.content,
                tool_call_id=result.tool_call_id,
                turn_id=given.turn_id,
            )
            check_message(body, f"{FIELD}[{place}]", bytes_max=self._message_bytes_max)
            bodies.append(body)
        return bodies


def _calls(turn: Turn) -> list[str]:
    """Ids of the calls that a turn waits for."""
    if turn.state != "completed" or turn.message is None:
        return []
    return [str(call["id"]) for call in turn.message.tool_calls or ()]


def _misfit(bodies: Sequence[MessageBody], calls: Sequence[str]) -> InvalidValue | None:
    """Every call is to be answered, once: a model refuses half of them."""
    answered: set[str | None] = set()
    for place, body in enumerate(bodies):
        field = f"{FIELD}[{place}].tool_call_id"
        if body.tool_call_id not in calls:
            return InvalidValue.of(field, "is no call that this turn waits for")
        if body.tool_call_id in answered:
            return InvalidValue.of(field, "is answered twice")
        answered.add(body.tool_call_id)
    if missing := [call for call in calls if call not in answered]:
        return InvalidValue.of(FIELD, f"lack that of the call {missing[0][:ID_BYTES_MAX]}")
    return None
