"""What must hold of a Redis before it is trusted: the shard count and the eviction policy."""

from typing import Final

from service.adapters.redis.client import RedisDoor
from service.adapters.redis.keys import LAYOUT_KEY
from service.domain.errors import ChatMemoryError, HotUnavailable

SHARDS_FIELD: Final = "journal_shards"
ARCHIVE_FIELD: Final = "archive"


class LayoutMismatch(ChatMemoryError):
    """This process must not work with this Redis: its settings contradict what is stored."""


class RedisLayout:
    """Checks a Redis once, and records the layout of a fresh one."""

    def __init__(self, door: RedisDoor, *, shards: int, archived: bool) -> None:
        self._door = door
        self._fields = {SHARDS_FIELD: str(shards), ARCHIVE_FIELD: "yes" if archived else "no"}
        self._verified = False

    async def fsync_problem(self) -> str | None:
        """Why this Redis cannot tell when its append-only file is on the disk; None: it can."""
        known = await self._door.command("COMMAND", "INFO", "WAITAOF")
        if not known or known[0] is None:
            return "This Redis is older than 7.2: it does not know WAITAOF."
        persistence = await self._door.command("INFO", "persistence")
        if b"aof_enabled:1" not in persistence:
            return "This Redis has no append-only file."
        return None

    async def verify(self) -> str | None:
        """Return a warning when a check was not allowed.

        Raises LayoutMismatch or HotUnavailable.
        """
        if self._verified:
            return None
        for field, value in self._fields.items():
            await self._door.command("HSETNX", LAYOUT_KEY, field, value)
            stored = (await self._door.command("HGET", LAYOUT_KEY, field)).decode()
            if stored != value:
                raise LayoutMismatch(_mismatch(field, stored, value))
        warning = await self._check_eviction()
        self._verified = True
        return warning

    async def _check_eviction(self) -> str | None:
        try:
            reply = await self._door.command("CONFIG", "GET", "maxmemory-policy")
        except HotUnavailable:
            # Managed servers forbid CONFIG; a server that is away fails the next command anyway.
            await self._door.command("PING")
            return "maxmemory-policy may not be asked: it must not be one of allkeys-*."
        policy = reply[1].decode() if reply else ""
        if policy.startswith("allkeys-"):
            raise LayoutMismatch(
                f"maxmemory-policy is {policy}: it may evict what is not archived yet. "
                "Use noeviction or volatile-*."
            )
        if policy.startswith("volatile-"):
            return f"maxmemory-policy is {policy}: a full Redis forgets Idempotency-Keys early."
        return None


def _mismatch(field: str, stored: str, value: str) -> str:
    if field == SHARDS_FIELD:
        return (
            f"JOURNAL_SHARDS is {value}, but this Redis was filled with {stored}. "
            f"To change it: stop all API processes, let `flush` run with {stored} until the "
            "journal is empty, retry or drop the dead letters, delete the keys that begin with "
            f"'{{cm', and start with {value}."
        )
    return (
        "This Redis was filled by a store with another archive setting (STORE=hybrid against "
        "STORE=redis). Use another Redis or database number, or delete the keys that begin with "
        "'{cm'."
    )
