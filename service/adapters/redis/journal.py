"""The write-behind queue in Redis streams, one per shard, and the leases on the shards."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from service.adapters.redis.client import RedisDoor, Script, Value
from service.adapters.redis.entries import entry_of
from service.adapters.redis.keys import FLUSHERS_KEY, Keys
from service.adapters.redis.replies import SessionLimits
from service.domain.journal import Acknowledgement, Entry, ShardBacklog, Unreadable
from service.domain.sessions import SessionRef

ACKNOWLEDGE: Final = Script("acknowledge", of_session=False, lets_go=True)
TAKE_SHARD: Final = Script("take_shard", of_session=False)
RELEASE_SHARD: Final = Script("release_shard", of_session=False)
ANNOUNCE_OWNER: Final = Script("announce_owner", of_session=False)


class RedisJournal:
    """Journal in Redis streams."""

    def __init__(self, door: RedisDoor, keys: Keys, limits: SessionLimits) -> None:
        self._door = door
        self._keys = keys
        self._limits = limits

    async def backlog(self, shards: Sequence[int]) -> list[ShardBacklog]:
        commands: list[Sequence[Value]] = [("TIME",)] if shards else []
        for shard in shards:
            commands += (
                ("XLEN", self._keys.journal(shard)),
                ("XRANGE", self._keys.journal(shard), "-", "+", "COUNT", 1),
                ("GET", self._keys.owner(shard)),
                ("HMGET", self._keys.shard_counters(shard), "bytes", "letters"),
            )
        # One shard's keys share a slot, but not with the others': a pipeline is no step.
        replies = await self._door.together(commands)
        if not replies:
            return []
        now = int(replies[0][0]) * 1000 + int(replies[0][1]) // 1000
        return [
            _backlog(shard, replies[4 * place + 1 : 4 * place + 5], now)
            for place, shard in enumerate(shards)
        ]

    async def oldest(self, refs: Sequence[SessionRef]) -> list[tuple[int, int] | None]:
        replies = await self._door.together(
            [
                ("XRANGE", self._keys.journal(self._keys.shard(ref)), "-", "+", "COUNT", 1)
                for ref in refs
            ]
        )
        return [_place(reply[0][0]) if reply else None for reply in replies]

    async def head(self, wanted: Sequence[tuple[int, int]]) -> list[list[Entry | Unreadable]]:
        replies = await self._door.together(
            [
                ("XRANGE", self._keys.journal(shard), "-", "+", "COUNT", count)
                for shard, count in wanted
            ]
        )
        return [_entries(reply) for reply in replies]

    async def acknowledge(self, shard: int, acknowledgement: Acknowledgement) -> bool:
        entries = acknowledgement.entries
        counts = Counter(entry.ref for entry in entries)
        keys = [self._keys.journal(shard), self._keys.shard_counters(shard)]
        words: list[Value] = [
            entries[0].position,
            _after(entries[-1].position),
            sum(len(entry.body) for entry in entries),
            self._limits.ttl_seconds * 1000,
            self._limits.held_max,
        ]
        for ref, count in counts.items():
            session = self._keys.session(ref)
            keys += (session.head, session.tail, session.pins, session.index)
            words += (ref.session_id, count)
        return await self._door.run(ACKNOWLEDGE, keys, words) == 1


class RedisShardLeases:
    """ShardLeases in Redis strings with a lifetime."""

    def __init__(self, door: RedisDoor, keys: Keys, *, lease_seconds: float) -> None:
        self._door = door
        self._keys = keys
        self._milliseconds = round(lease_seconds * 1000)

    async def live_owners(self, owner: str) -> int:
        words = (owner, self._milliseconds)
        return int(await self._door.run(ANNOUNCE_OWNER, [FLUSHERS_KEY], words))

    async def take(self, shard: int, owner: str) -> bool:
        words = (owner, self._milliseconds)
        return await self._door.run(TAKE_SHARD, [self._keys.owner(shard)], words) == 1

    async def release(self, shard: int, owner: str) -> None:
        await self._door.run(RELEASE_SHARD, [self._keys.owner(shard)], [owner])

    async def leave(self, owner: str) -> None:
        await self._door.run(ANNOUNCE_OWNER, [FLUSHERS_KEY], (owner, 0))


def _backlog(shard: int, replies: list[Any], now: int) -> ShardBacklog:
    entries, oldest, owner, (size, letters) = replies
    return ShardBacklog(
        shard=shard,
        entries=int(entries),
        bytes=int(size or 0),
        dead_letters=int(letters or 0),
        oldest_milliseconds=int(oldest[0][0].split(b"-")[0]) if oldest else None,
        now_milliseconds=now,
        owner=owner.decode() if owner else None,
    )


def _entries(reply: list[Any]) -> list[Entry | Unreadable]:
    entries: list[Entry | Unreadable] = []
    for position, fields in reply:
        entry = entry_of(position.decode(), dict(zip(fields[::2], fields[1::2], strict=True)))
        if entry is None:
            break
        entries.append(entry)
    return entries


def _place(position: bytes) -> tuple[int, int]:
    milliseconds, _, counter = position.partition(b"-")
    return int(milliseconds), int(counter)


def _after(position: str) -> str:
    milliseconds, _, counter = position.partition("-")
    return f"{milliseconds}-{int(counter) + 1}"
