"""Turns over two tiers."""

import asyncio

import msgspec

from service.core.tiered.archiving import ArchiveWaits, check_archived
from service.core.tiered.merging import covers, hot_recent
from service.core.tiered.warming import Warming, moved_too_often, moves
from service.domain.context import Need
from service.domain.errors import TurnNotWaiting
from service.domain.ids import MessageId, TurnId
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
    LeaseState,
    Replayed,
    Stops,
    TurnRecord,
    Wanted,
    needed,
)


class TieredTurns:
    """Turns in the hot memory; a cold session's history comes from the archive first.

    A warm turn is one step at its begin and one at its end.
    """

    def __init__(self, hot: HotTurns, warming: Warming, waits: ArchiveWaits | None) -> None:
        self._hot = hot
        self._warming = warming
        self._waits = waits

    @property
    def stops(self) -> Stops:
        return self._hot.stops

    async def begin(self, command: Begin) -> Begun | Replayed:
        check_archived(command.durability, self._waits)
        incomplete_ok = False
        for _ in moves():
            result = await self._hot.begin(command, incomplete_ok=incomplete_ok)
            match result:
                case Replayed():
                    await self._until_archived(command.ref, command.durability, result.message_id)
                    return result
                case HotBegun():
                    return await self._begun_or_failed(command, result)
                case Cold(state=state):
                    # Before anything is written the archive must answer. What it has and does not
                    # fit the hot memory is read again below, after the turn has begun.
                    await self._warm(command, state)
                    incomplete_ok = True
        if command.resumes is not None:
            # So much was said since the calls that they are not hot any more.
            raise TurnNotWaiting
        raise moved_too_often()

    async def renew(self, ref: SessionRef, lease_token: str) -> LeaseState:
        return await self._hot.renew(ref, lease_token)

    async def find(
        self, ref: SessionRef, turn_id: TurnId, *, cancel: bool = False, asked: bool = False
    ) -> TurnRecord | None:
        return await self._hot.find(ref, turn_id, cancel=cancel, asked=asked)

    async def finish(self, command: Finish) -> Finished:
        finished = await self._hot.finish(command)
        if command.durability == "archived" and finished.message_id is not None:
            # What the turn was asked is archived with its answer, or it is not.
            record = await self._hot.find(command.ref, command.turn_id)
            first = record.user_message_id if record else None
            await self._until_archived(
                command.ref, command.durability, finished.message_id, first=first
            )
        return finished

    async def fail(self, command: Finish) -> Finished:
        return await self._hot.fail(command)

    async def _until_archived(
        self,
        ref: SessionRef,
        wanted: Wanted,
        message_id: MessageId | None,
        *,
        first: MessageId | None = None,
    ) -> None:
        if wanted == "archived" and self._waits is not None and message_id is not None:
            await self._waits.until_archived(ref, message_id, first=first)

    async def _warm(self, command: Begin, state: HotState) -> None:
        need = _needed(command, state.document)
        if covers(state, need):
            await self._warming.know(command.ref, state)
        else:
            await self._warming.recent(command.ref, need)

    async def _begun_or_failed(self, command: Begin, begun: HotBegun) -> Begun:
        try:
            return await self._begun(command, begun)
        except BaseException:
            # Nobody will run this turn: whoever comes next need not wait for its lease.
            failed = Finish(
                ref=command.ref,
                turn_id=command.turn_id,
                lease_token=command.lease_token,
                body=None,
                result=b"",
                once=command.once,
                resumed=command.resumes is not None,
            )
            await asyncio.shield(self._hot.fail(failed))
            raise

    async def _begun(self, command: Begin, begun: HotBegun) -> Begun:
        need = _needed(command, begun.state.document)
        state = _before(begun.state, begun.user_message_id)
        if covers(state, need):
            history = hot_recent(state, need)
        else:
            history, _ = await self._warming.complete(command.ref, state, need)
        return Begun(user_message_id=begun.user_message_id, turn_id=begun.turn_id, history=history)


def _needed(command: Begin, document: bytes) -> Need:
    return needed(command, decode_document(document))


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
