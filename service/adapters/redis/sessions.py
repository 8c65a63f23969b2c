"""Session documents in Redis, journaled like messages."""

import secrets
from collections.abc import Sequence
from typing import Any, Final, Literal

from service.adapters.redis.client import RedisDoor, Script
from service.adapters.redis.replies import SessionArguments, budget_of, wanted
from service.adapters.redis.transcripts import REPEAT_MILLISECONDS, existing
from service.domain.errors import Overloaded
from service.domain.ids import MessageId, random_bits
from service.domain.sessions import SessionDocument, SessionRef, encode_document
from service.domain.summaries import Summary, encode_summary
from service.ports import Cold, Create, Created, Once

DOCUMENT: Final = Script("document", of_session=True)
DELETE: Final = Script("delete", of_session=True)
SUMMARY: Final = Script("summary", of_session=True)

UNARCHIVED_MAX: Final = 10_000
"""Sessions of a tenant with unflushed entries that a listing takes in."""

NO_KEY: Final = -2
"""What PTTL says of a key that is not there."""


class RedisSessions:
    """HotSessions in Redis."""

    def __init__(self, door: RedisDoor, arguments: SessionArguments, *, once_seconds: int) -> None:
        self._door = door
        self._arguments = arguments
        self._once_seconds = once_seconds

    async def create(self, command: Create) -> Created | Cold | None:
        document = command.document
        status, rest = await self._put(
            command.ref, "create", command.user_id or "", b"", document, command.once
        )
        match status:
            case b"done" | b"replayed":
                return Created(
                    born_id=MessageId(rest[0].decode()),
                    ttl=document.ttl_seconds or self._arguments.limits.ttl_seconds,
                    replayed=status == b"replayed" and command.once is not None,
                )
            case b"exists":
                return None
            case b"cold":
                return Cold(state=self._arguments.state(rest[0]))
            case _:
                raise self._arguments.refusal(status)

    async def replace(
        self, ref: SessionRef, old: SessionDocument, new: SessionDocument
    ) -> Literal["replaced", "changed", "missing"] | Cold:
        # An empty document is kept as no document, whichever way the session was made.
        seen = b"" if old == SessionDocument() else encode_document(old)
        status, rest = await self._put(ref, "replace", "", seen, new, None)
        match status:
            case b"done" | b"replayed":
                return "replaced"
            case b"changed":
                return "changed"
            case b"missing":
                return "missing"
            case b"cold":
                return Cold(state=self._arguments.state(rest[0]))
            case _:
                raise self._arguments.refusal(status)

    async def summarise(
        self, ref: SessionRef, old: MessageId | None, summary: Summary
    ) -> Literal["replaced", "changed", "missing"] | Cold:
        words = [
            *self._arguments.shared(ref),
            old or "",
            encode_summary(summary),
            summary.through_id,
            random_bits(),
            summary.from_id,
        ]
        status, *rest = await self._door.run(SUMMARY, self._keys(ref), words)
        match status:
            case b"done":
                return "replaced"
            case b"changed":
                return "changed"
            case b"missing":
                return "missing"
            case b"cold":
                return Cold(state=self._arguments.state(rest[0]))
            case _:
                raise self._arguments.refusal(status)

    async def delete(self, ref: SessionRef) -> bool | Cold:
        words = [*self._arguments.shared(ref), random_bits()]
        return existing(self._arguments, await self._door.run(DELETE, self._keys(ref), words))

    async def unarchived(self, tenant: str) -> Sequence[str]:
        names = self._arguments.keys
        replies = await self._door.together(
            [
                ("ZREVRANGE", names.index(shard, tenant), 0, UNARCHIVED_MAX)
                for shard in range(names.shards)
            ]
        )
        found = [session_id.decode() for reply in replies for session_id in reply]
        if len(found) > UNARCHIVED_MAX:
            raise Overloaded(
                f"More than {UNARCHIVED_MAX} sessions are not archived yet: they cannot be listed."
            )
        return found

    async def remaining(self, refs: Sequence[SessionRef]) -> list[int | None]:
        heads = [self._arguments.keys.session(ref).head for ref in refs]
        lifetimes = await self._door.together([("PTTL", head) for head in heads])
        own = await self._door.together([("HGET", head, "ttl") for head in heads])
        return [self._left(*pair) for pair in zip(lifetimes, own, strict=True)]

    def _left(self, milliseconds: int, own_seconds: bytes | None) -> int | None:
        if milliseconds == NO_KEY:
            return None
        if milliseconds < 0:
            # No lifetime: the full one begins when the last entry is flushed.
            return int(own_seconds or self._arguments.limits.ttl_seconds)
        return round(milliseconds / 1000)

    async def _put(
        self,
        ref: SessionRef,
        how: Literal["create", "replace"],
        user_id: str,
        seen: bytes,
        document: SessionDocument,
        once: Once | None,
    ) -> tuple[bytes, list[Any]]:
        words = [
            *self._arguments.shared(ref),
            how,
            user_id,
            seen,
            b"" if document == SessionDocument() else encode_document(document),
            wanted(document),
            document.ttl_seconds or "",
            random_bits(),
            once.fingerprint if once else "-",
            self._once_seconds * 1000 if once else REPEAT_MILLISECONDS,
            budget_of(document),
        ]
        status, *rest = await self._door.run(DOCUMENT, self._keys(ref, once), words)
        return status, rest

    def _keys(self, ref: SessionRef, once: Once | None = None) -> list[str]:
        names = self._arguments.keys
        operation, key = (once.operation, once.key) if once else ("op", secrets.token_hex(8))
        return [*names.session(ref).listed(), names.once(ref, operation, key)]
