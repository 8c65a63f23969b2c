"""Entries that the archive refused, in Redis: each in a hash beside its shard's journal."""

import secrets
from typing import Any, Final, Literal

from service.adapters.redis.client import RedisDoor, Script, Value
from service.adapters.redis.entries import entry_of, position_id
from service.adapters.redis.keys import Keys
from service.adapters.redis.replies import SessionLimits
from service.domain.ids import MessageId
from service.domain.journal import DeadLetter, Entry, EntryKind, Refused, Unreadable
from service.domain.sessions import SessionRef

BURY: Final = Script("bury", of_session=False, lets_go=True)
RELEASE: Final = Script("release", of_session=False, lets_go=True)
REFUSE_AGAIN: Final = Script("refuse_again", of_session=False)

CLASSES: Final[dict[EntryKind, int]] = {"message": 0, "summary": 1, "document": 2}
"""As in letting_go.lua. A clear or a deletion is never a letter."""

JOURNALED: Final[tuple[bytes, ...]] = (b"k", b"t", b"s", b"u", b"r", b"b")
NOTED: Final[tuple[bytes, ...]] = (b"position", b"reason", b"first", b"last", b"attempts")


class RedisDeadLetters:
    """DeadLetters in Redis."""

    def __init__(
        self, door: RedisDoor, keys: Keys, limits: SessionLimits, *, letters_max: int
    ) -> None:
        self._door = door
        self._keys = keys
        self._limits = limits
        self._letters_max = letters_max

    async def bury(self, shard: int, entry: Entry | Unreadable, reason: str) -> Refused:
        if isinstance(entry, Entry) and entry.kind not in CLASSES:
            return "kept"
        letter_id, kind, ref = position_id(entry.position), 0, None
        if isinstance(entry, Entry):
            letter_id, kind, ref = entry.id, CLASSES[entry.kind], entry.ref
        keys = [
            *(self._keys.journal(shard), self._keys.shard_counters(shard)),
            *(self._keys.letters(shard), self._keys.letter(shard, letter_id)),
            *self._session(ref),
        ]
        words: list[Value] = [
            *(entry.position, letter_id, kind, reason, self._letters_max),
            *self._lifetime(),
            ref.session_id if ref else "",
        ]
        match await self._door.run(BURY, keys, words):
            case b"buried":
                return "buried"
            case b"forgotten":
                return "forgotten"
            case b"full":
                return "full"
            case _:
                return "moved"

    async def among(self, ref: SessionRef, first: MessageId, last: MessageId) -> list[MessageId]:
        dead = self._keys.session(ref).dead
        [found] = await self._door.together([("ZRANGEBYSCORE", dead, 0, 0)])
        ids = [MessageId(one.decode()) for one in found]
        return [one for one in ids if first <= one <= last]

    async def page(self, *, after: MessageId | None, limit: int) -> list[DeadLetter]:
        """Without the bodies of the entries."""
        names = [self._keys.letters(shard) for shard in range(self._keys.shards)]
        found = await self._door.together([("ZRANGE", name, 0, -1) for name in names])
        places = sorted(
            (MessageId(one.decode()), shard) for shard, ids in enumerate(found) for one in ids
        )
        shown = [place for place in places if after is None or place[0] > after][:limit]
        keys = [self._keys.letter(shard, letter_id) for letter_id, shard in shown]
        names_ = [name for name in (*JOURNALED, *NOTED) if name != b"b"]
        values = await self._door.together([("HMGET", key, *names_) for key in keys])
        sizes = await self._door.together([("HSTRLEN", key, "b") for key in keys])
        return [
            _letter(letter_id, shard, dict(zip(names_, row, strict=True)) | {b"b": b""}, size)
            for (letter_id, shard), row, size in zip(shown, values, sizes, strict=True)
            # One that went in between has no fields.
            if row[-1] is not None
        ]

    async def find(self, letter_id: MessageId) -> DeadLetter | None:
        names = (*JOURNALED, *NOTED)
        keys = [self._keys.letter(shard, letter_id) for shard in range(self._keys.shards)]
        rows = await self._door.together([("HMGET", key, *names) for key in keys])
        for shard, row in enumerate(rows):
            fields = dict(zip(names, row, strict=True))
            if fields[b"attempts"] is not None:
                return _letter(letter_id, shard, fields, len(fields[b"b"] or b""))
        return None

    async def release(self, letter: DeadLetter, how: Literal["archived", "dropped"]) -> bool:
        ref = letter.entry.ref if letter.entry else None
        keys = [
            self._keys.shard_counters(letter.shard),
            self._keys.letter(letter.shard, letter.id),
            *self._session(ref),
        ]
        words: list[Value] = [
            *(letter.id, how, *self._lifetime()),
            ref.session_id if ref else "",
            secrets.token_hex(8),
        ]
        return await self._door.run(RELEASE, keys, words) == 1

    async def refuse_again(self, letter: DeadLetter, reason: str) -> int:
        key = self._keys.letter(letter.shard, letter.id)
        return await self._door.run(REFUSE_AGAIN, [key], [reason, letter.attempts])

    def _session(self, ref: SessionRef | None) -> list[str]:
        if ref is None:
            return []
        session = self._keys.session(ref)
        return [session.head, session.tail, session.pins, session.index, session.dead]

    def _lifetime(self) -> tuple[int, int]:
        return self._limits.ttl_seconds * 1000, self._limits.held_max


def _letter(letter_id: MessageId, shard: int, fields: dict[bytes, Any], size: int) -> DeadLetter:
    position = fields[b"position"].decode()
    journaled = {name: fields[name] for name in JOURNALED if fields[name] is not None}
    entry = entry_of(position, journaled)
    return DeadLetter(
        id=letter_id,
        shard=shard,
        reason=fields[b"reason"].decode(),
        first_seen_milliseconds=int(fields[b"first"]),
        last_attempt_milliseconds=int(fields[b"last"]),
        attempts=int(fields[b"attempts"]),
        bytes=size,
        entry=entry if isinstance(entry, Entry) else None,
    )
