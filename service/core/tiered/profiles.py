"""Profiles in the archive, with a copy in the hot memory.

A writer puts a marker in the copy's place before it commits, and its value after; where its marker
is gone by then, writers have overlapped, and it leaves a marker again. A reader fills only an empty
place. So a copy is either what the archive has, or a marker that tells to ask the archive. A marker
outlives any call of the archive: who read the row before a commit cannot come back with it later.
A writer that dies, is refused, or does not know how its commit ended, leaves the marker.

What is not covered: a commit that succeeds in PostgreSQL after its marker has ended.
"""

import secrets

from service.domain.profiles import Profile
from service.ports import HotProfiles, Profiles


class TieredProfiles:
    """Profiles over two tiers."""

    def __init__(self, archive: Profiles, hot: HotProfiles) -> None:
        self._archive = archive
        self._hot = hot

    async def get(self, tenant: str, user_id: str) -> Profile | None:
        copy = await self._hot.get(tenant, user_id)
        if copy.state == "held":
            return copy.profile
        profile = await self._archive.get(tenant, user_id)
        if copy.state == "empty":
            await self._hot.fill(tenant, user_id, profile)
        return profile

    async def replace(
        self, tenant: str, user_id: str, old: str | None, new: Profile | None
    ) -> bool:
        token = secrets.token_hex(8)
        await self._hot.mark(tenant, user_id, token)
        if not await self._archive.replace(tenant, user_id, old, new):
            return False
        await self._hot.settle(tenant, user_id, token, new)
        return True
