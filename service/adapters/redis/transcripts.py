"""Messages in Redis: append, read, fill and clear, each one script in one round trip."""

import secrets
from typing import Any, Final

from msgspec import UNSET

from service.adapters.redis.client import RedisDoor, Script
from service.adapters.redis.durable import DurableRuns
from service.adapters.redis.healing import HEAL
from service.adapters.redis.replies import SessionArguments, budget_of, wanted
from service.domain.errors import PreconditionFailed
from service.domain.ids import HIGHEST_ID, ZERO_ID, MessageId, random_bits
from service.domain.sessions import SessionRef, decode_document
from service.domain.summaries import decode_summary
from service.ports import Append, Appended, Cold, Filled, Filling, HotState

APPEND: Final = Script("append", of_session=True)
READ: Final = Script("read", of_session=True)
FILL: Final = Script("fill", of_session=True)
CLEAR: Final = Script("clear", of_session=True)

REPEAT_MILLISECONDS: Final = 60_000
"""How long a call without a client's key is remembered, for the service's own repeats."""


class RedisTranscripts:
    """HotTranscripts in Redis."""

    def __init__(
        self,
        door: RedisDoor,
        durable: DurableRuns,
        arguments: SessionArguments,
        *,
        once_seconds: int,
    ) -> None:
        self._door = door
        self._durable = durable
        self._arguments = arguments
        self._once_milliseconds = once_seconds * 1000

    async def append(self, command: Append) -> Appended | Cold:
        once = command.once
        key = once.key if once else secrets.token_hex(8)
        words = [
            *self._arguments.shared(command.ref),
            command.user_id or "",
            once.fingerprint if once else "-",
            self._once_milliseconds if once else REPEAT_MILLISECONDS,
            "*" if command.if_last_id is UNSET else command.if_last_id or "",
            len(command.bodies),
        ]
        for body in command.bodies:
            words += (body, random_bits())
        keys = self._keys(command.ref, once.operation if once else "op", key)
        status, *rest = await self._durable.run(APPEND, keys, words, command.durability)
        match status:
            case b"done" | b"replayed":
                ids = tuple(MessageId(text.decode()) for text in rest[0])
                return Appended(
                    ids=ids,
                    durability="fsynced" if command.durability == "fsynced" else "journaled",
                    replayed=once is not None and status == b"replayed",
                )
            case b"cold":
                return Cold(state=self._arguments.state(rest[0]))
            case b"moved":
                raise PreconditionFailed(rest[0].decode() or None)
            case _:
                raise self._arguments.refusal(status)

    async def read(self, ref: SessionRef, *, last: int | None) -> HotState:
        words = [*self._arguments.shared(ref), -1 if last is None else last]
        _, state = await self._door.run(READ, self._arguments.keys.session(ref).listed(), words)
        return self._arguments.state(state)

    async def fill(self, filling: Filling) -> Filled | None:
        row = filling.session
        session = None if row is None or row.deleted else row
        document = decode_document(session.document) if session else decode_document(b"")
        summary = session.summary if session else b""
        covered = decode_summary(summary)
        through = covered.through_id if covered else ""
        words = [
            *self._arguments.shared(filling.ref),
            filling.seen.epoch,
            filling.seen.floor or "",
            int(session is not None),
            (session.user_id or "") if session else "",
            session.document if session else "",
            wanted(document),
            document.ttl_seconds or "",
            session.born_id if session else "",
            row.cleared_through if row else ZERO_ID,
            session.active_id if session else "",
            (session.last_id or "") if session else "",
            filling.floor or "",
            -1 if filling.pinned is None else len(filling.pinned),
            len(filling.messages),
            filling.seen.held,
            budget_of(document),
            summary,
            through,
            *(filling.pinned or ()),
            *filling.messages,
        ]
        keys = self._arguments.keys.session(filling.ref).listed()
        reply = await self._door.run(FILL, keys, words)
        if reply[0] != b"filled":
            return None
        _, milliseconds, exists, own = reply
        return Filled(ttl=self._arguments.ttl(milliseconds, exists=exists != b"", own=own.decode()))

    async def clear(self, ref: SessionRef) -> bool | Cold:
        words = [*self._arguments.shared(ref), random_bits()]
        keys = self._keys(ref, "op", secrets.token_hex(8))
        return existing(self._arguments, await self._door.run(CLEAR, keys, words))

    async def import_ended(self, ref: SessionRef, importing: str) -> None:
        keys = self._arguments.keys.session(ref).listed()
        await self._door.run(HEAL, keys, [*self._arguments.shared(ref), HIGHEST_ID, importing])

    def _keys(self, ref: SessionRef, operation: str, key: str) -> list[str]:
        names = self._arguments.keys
        return [*names.session(ref).listed(), names.once(ref, operation, key)]


def existing(arguments: SessionArguments, reply: Any) -> bool | Cold:
    """Whether a change found its session."""
    status, *rest = reply
    match status:
        case b"done":
            return True
        case b"missing":
            return False
        case b"cold":
            return Cold(state=arguments.state(rest[0]))
        case _:
            raise arguments.refusal(status)
