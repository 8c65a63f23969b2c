"""Turns over two tiers."""

from service.core.tiered.merging import covers, hot_recent
from service.core.tiered.warming import Warming, moved_too_often, moves
from service.domain.context import plan
from service.domain.ids import MessageId
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
    Recent,
    Replayed,
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
        if covers(begun.state, needed):
            history = hot_recent(begun.state, None)
        else:
            history = await self._warming.complete(command.ref, begun.state, needed)
        return Begun(
            user_message_id=begun.user_message_id,
            history=_before(history, begun.user_message_id),
        )


def _needed(command: Begin, document: bytes) -> int | None:
    context = decode_document(document).context
    if command.session_last and context is not None:
        return plan(context).last
    return command.last


def _before(history: Recent, user_message_id: MessageId) -> Recent:
    # A user message that is taken up again stands among the others; it is not its own history.
    return Recent(
        exists=history.exists,
        user_id=history.user_id,
        document=history.document,
        messages=tuple(m for m in history.messages if m.id < user_message_id),
        pinned=history.pinned,
        ttl=history.ttl,
    )
