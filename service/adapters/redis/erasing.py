"""Forgetting a user's sessions in Redis, and finding them."""

import secrets
from collections.abc import AsyncGenerator
from typing import Any, Final

from service.adapters.redis.client import RedisDoor, Script
from service.adapters.redis.replies import SessionArguments
from service.domain.ids import MessageId, random_bits
from service.domain.sessions import SessionRef
from service.ports import HotDeletion, HotErased, HotOfUser

ERASE: Final = Script("erase", of_session=True)

SCAN_COUNT: Final = 500
"""Sessions of the index that one look takes in."""


class RedisErasure:
    """HotErasure in Redis."""

    def __init__(self, door: RedisDoor, arguments: SessionArguments) -> None:
        self._door = door
        self._arguments = arguments

    async def find(self, tenant: str, user_id: str) -> HotOfUser:
        refs: set[SessionRef] = set()
        deletions: dict[int, HotDeletion] = {}
        wanted = user_id.encode()
        for shard in range(self._arguments.keys.shards):
            async for ref, (user, exists, erased, cleared) in self._heads(shard, tenant):
                if wanted in {user, erased}:
                    refs.add(ref)
                if not exists and cleared:
                    _keep(deletions, self._deletion(ref, cleared))
        return HotOfUser(refs=tuple(sorted(refs)), deletions=tuple(deletions.values()))

    async def erase(self, ref: SessionRef, user_id: str) -> HotErased | HotDeletion | None:
        names = self._arguments.keys
        once = names.once(ref, "op", secrets.token_hex(16))
        keys = [*names.session(ref).listed(), once]
        words = [*self._arguments.shared(ref), user_id, random_bits()]
        status, *rest = await self._door.run(ERASE, keys, words)
        match status:
            case b"done":
                identity, entries, records, hot, letters = rest
                return HotErased(
                    deletion=self._deletion(ref, identity),
                    entries=entries,
                    records=records,
                    hot=hot == 1,
                    dead_letters=letters,
                )
            case b"gone":
                return self._deletion(ref, rest[0]) if rest[0] else None
            case _:
                raise self._arguments.refusal(status)

    def _deletion(self, ref: SessionRef, identity: bytes) -> HotDeletion:
        shard = self._arguments.keys.shard(ref)
        return HotDeletion(ref=ref, id=MessageId(identity.decode()), shard=shard)

    async def _heads(
        self, shard: int, tenant: str
    ) -> AsyncGenerator[tuple[SessionRef, list[bytes | None]]]:
        """What the heads of the indexed sessions say; each that is there all along, once or more.

        A scan and not a range: a session that is used meanwhile moves in the index.
        """
        names = self._arguments.keys
        index, cursor = names.index(shard, tenant), "0"
        while True:
            [(found, members)] = await self._door.together(
                [("ZSCAN", index, cursor, "COUNT", SCAN_COUNT)]
            )
            refs = [SessionRef(tenant, member.decode()) for member in members[::2]]
            heads: list[list[Any]] = await self._door.together(
                [
                    ("HMGET", names.session(ref).head, "user", "exists", "erased", "cleared")
                    for ref in refs
                ]
            )
            for pair in zip(refs, heads, strict=True):
                yield pair
            cursor = found.decode()
            if cursor == "0":
                return


def _keep(deletions: dict[int, HotDeletion], deletion: HotDeletion) -> None:
    known = deletions.get(deletion.shard)
    if known is None or known.id < deletion.id:
        deletions[deletion.shard] = deletion
