"""Profiles in Redis: for good where there is no archive, else as copies of its rows."""

from typing import Final

from service.adapters.redis.client import RedisDoor, Script
from service.adapters.redis.keys import Keys
from service.domain.profiles import Profile, decode_profile, encode_profile
from service.ports import ProfileCopy

REPLACE_PROFILE: Final = Script("replace_profile", of_session=False)
SETTLE_PROFILE: Final = Script("settle_profile", of_session=False)

NOBODY: Final = b"-"
"""Stands for no profile, which is known as well."""

MARK: Final = b"writing:"


class RedisProfiles:
    """Profiles in Redis, without an end."""

    def __init__(self, door: RedisDoor, keys: Keys) -> None:
        self._door = door
        self._keys = keys

    async def get(self, tenant: str, user_id: str) -> Profile | None:
        text = await self._door.command("GET", self._keys.profile(tenant, user_id))
        return None if text is None else decode_profile(text)

    async def replace(
        self, tenant: str, user_id: str, old: str | None, new: Profile | None
    ) -> bool:
        words = [
            old or "",
            b"" if new is None else encode_profile(new),
            "" if new is None else new.version,
        ]
        keys = [self._keys.profile(tenant, user_id)]
        return await self._door.run(REPLACE_PROFILE, keys, words) == 1


class RedisProfileCopies:
    """HotProfiles in Redis."""

    def __init__(
        self, door: RedisDoor, keys: Keys, *, ttl_seconds: int, mark_seconds: float
    ) -> None:
        self._door = door
        self._keys = keys
        self._ttl_milliseconds = ttl_seconds * 1000
        self._mark_milliseconds = round(mark_seconds * 1000)

    async def get(self, tenant: str, user_id: str) -> ProfileCopy:
        text: bytes | None = await self._door.command("GET", self._keys.profile(tenant, user_id))
        if text is None:
            return ProfileCopy(state="empty")
        if text.startswith(MARK):
            return ProfileCopy(state="marked")
        return ProfileCopy(state="held", profile=None if text == NOBODY else decode_profile(text))

    async def fill(self, tenant: str, user_id: str, profile: Profile | None) -> None:
        key = self._keys.profile(tenant, user_id)
        lifetime = self._ttl_milliseconds
        await self._door.command("SET", key, _copy(profile), "NX", "PX", lifetime)

    async def mark(self, tenant: str, user_id: str, token: str) -> None:
        key = self._keys.profile(tenant, user_id)
        await self._door.command("SET", key, MARK + token.encode(), "PX", self._mark_milliseconds)

    async def settle(self, tenant: str, user_id: str, token: str, profile: Profile | None) -> None:
        mark = MARK + token.encode()
        words = [mark, _copy(profile), self._ttl_milliseconds, self._mark_milliseconds]
        await self._door.run(SETTLE_PROFILE, [self._keys.profile(tenant, user_id)], words)


def _copy(profile: Profile | None) -> bytes:
    return NOBODY if profile is None else encode_profile(profile)
