"""Turns over two tiers."""

import msgspec

from service.core.tiered.merging import covers, hot_recent
from service.core.tiered.warming import Warming, moved_too_often, moves
from service.domain.ids import MessageId
from service.domain.messages import id_of
from service.domain.sessions import SessionRef, decode_document
from service.ports import (
    Begin,
    Begun,
    Cold,
    Finish,
    Finished,
    HotBegun,
    HotState,
    HotTurns,
    Replayed,
    needed_last,
)


class TieredTurns:
    """Turns in the hot memory; a cold session's history comes from the archive first.

    A warm turn is one step at its begin and one at its end.
    """

    def __init__(self, hot: HotTurns, warming: Warming) -> None:
        self._hot = hot
        self._warming = warming

    async def begin(self, command: Begin) -> Begun | Replayed:
        incomplete_ok = False
        for _ in moves():
            result = await self._hot.begin(command, incomplete_ok=incomplete_ok)
            match result:
                case Replayed():
                    return result
                case HotBegun():
                    return await self._begun(command, result)
                case Cold(state=state):
                    # Before anything is written the archive must answer. What it has and does not
                    # fit the hot memory is read again below, after the turn has begun.
                    await self._warm(command, state)
                    incomplete_ok = True
        raise moved_too_often()

    async def renew(self, ref: SessionRef, lease_token: str) -> bool:
        return await self._hot.renew(ref, lease_token)

    async def finish(self, command: Finish) -> Finished:
        return await self._hot.finish(command)

    async def fail(self, command: Finish) -> None:
        await self._hot.fail(command)

    async def _warm(self, command: Begin, state: HotState) -> None:
        needed = _needed(command, state.document)
        if covers(state, needed):
            await self._warming.know(command.ref, state)
        else:
            await self._warming.recent(command.ref, last=needed)

    async def _begun(self, command: Begin, begun: HotBegun) -> Begun:
        needed = _needed(command, begun.state.document)
        state = _before(begun.state, begun.user_message_id)
        if covers(state, needed):
            history = hot_recent(state, needed)
        else:
            history = await self._warming.complete(command.ref, state, needed)
        return Begun(user_message_id=begun.user_message_id, history=history)


def _needed(command: Begin, document: bytes) -> int | None:
    return needed_last(command, decode_document(document))


def _before(state: HotState, user_message_id: MessageId) -> HotState:
    # A user message that is taken up again stands among the others or is no longer hot: what was
    # said after it is not its history.
    messages = tuple(text for text in state.messages if id_of(text) < user_message_id)
    after = len(state.messages) - len(messages)
    return msgspec.structs.replace(
        state,
        messages=messages,
        held=state.held - after,
        floor=min(state.floor, user_message_id) if state.floor else None,
        pinned=tuple(text for text in state.pinned if id_of(text) < user_message_id),
    )
