"""Profiles: what callers keep about a user, changed by compare-and-set."""

import uuid
from collections.abc import Callable
from typing import Final

import msgspec

from service.domain.errors import Overloaded, ProfileChanged, ProfileNotFound
from service.domain.ids import check_id, time_of
from service.domain.profiles import Fact, Profile, Topics, checked_topics, profile_text
from service.ports import Clock, Profiles

ATTEMPTS_MAX: Final = 20
"""Writers of one profile that may come first before a write gives up."""

TopicsPatch = dict[str, list[Fact] | None]
"""A merge patch: None removes a topic."""


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """What a caller wants to be true of the profile that it changes."""

    versions: tuple[str, ...] | None = None
    """One of these; None for any."""
    exists: bool | None = None
    """Whether there is one; None for either."""

    def check(self, profile: Profile | None) -> None:
        """Raises ProfileChanged."""
        if self.exists is not None and self.exists != (profile is not None):
            raise ProfileChanged(profile.version if profile else None)
        if self.versions is not None and (profile is None or profile.version not in self.versions):
            raise ProfileChanged(profile.version if profile else None)


class Written(msgspec.Struct, frozen=True, kw_only=True):
    profile: Profile
    made: bool


class UserProfiles:
    """Reads and writes of profiles."""

    def __init__(self, profiles: Profiles, *, bytes_max: int, clock: Clock) -> None:
        self._profiles = profiles
        self._bytes_max = bytes_max
        self._clock = clock

    async def get(self, tenant: str, user_id: str) -> Profile:
        """Raises ProfileNotFound."""
        check_id(user_id, "user_id")
        profile = await self._profiles.get(tenant, user_id)
        if profile is None:
            raise ProfileNotFound
        return profile

    async def text(self, tenant: str, user_id: str) -> str | None:
        """The part of a prompt that shows the profile."""
        profile = await self._profiles.get(tenant, user_id)
        return None if profile is None else profile_text(profile)

    async def put(self, tenant: str, user_id: str, topics: Topics, condition: Condition) -> Written:
        """Raises InvalidValue, ProfileChanged."""
        checked = checked_topics(topics, bytes_max=self._bytes_max)
        return await self._change(tenant, user_id, condition, lambda _: checked)

    async def patch(
        self, tenant: str, user_id: str, changes: TopicsPatch | None, condition: Condition
    ) -> Written:
        """Merge (RFC 7396); makes the profile if needed; None removes all topics."""

        def patched(profile: Profile | None) -> Topics:
            merged = dict(profile.topics) if profile and changes is not None else {}
            for name, facts in (changes or {}).items():
                if facts is None:
                    merged.pop(name, None)
                else:
                    merged[name] = facts
            return checked_topics(merged, bytes_max=self._bytes_max)

        return await self._change(tenant, user_id, condition, patched)

    async def delete(self, tenant: str, user_id: str, condition: Condition) -> None:
        """Raises ProfileNotFound, ProfileChanged."""
        check_id(user_id, "user_id")
        for _ in range(ATTEMPTS_MAX):
            profile = await self._profiles.get(tenant, user_id)
            condition.check(profile)
            if profile is None:
                raise ProfileNotFound
            if await self._profiles.replace(tenant, user_id, profile.version, None):
                return
        raise _contended()

    async def forget(self, tenant: str, user_id: str) -> bool:
        """Delete the profile, if there is one; whether there was."""
        try:
            await self.delete(tenant, user_id, Condition())
        except ProfileNotFound:
            return False
        return True

    async def _change(
        self,
        tenant: str,
        user_id: str,
        condition: Condition,
        topics_of: Callable[[Profile | None], Topics],
    ) -> Written:
        check_id(user_id, "user_id")
        for _ in range(ATTEMPTS_MAX):
            old = await self._profiles.get(tenant, user_id)
            condition.check(old)
            new = Profile(
                version=str(uuid.uuid4()),
                topics=topics_of(old),
                updated_at=time_of(self._clock.milliseconds()),
            )
            version = old.version if old else None
            if await self._profiles.replace(tenant, user_id, version, new):
                return Written(profile=new, made=old is None)
        raise _contended()


def _contended() -> Overloaded:
    return Overloaded("The profile is being changed by others all the time.")
