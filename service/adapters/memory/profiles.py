"""Profiles in process memory."""

from service.domain.profiles import Profile


class MemoryProfiles:
    """Profiles in process memory."""

    def __init__(self) -> None:
        self._profiles: dict[tuple[str, str], Profile] = {}

    async def get(self, tenant: str, user_id: str) -> Profile | None:
        return self._profiles.get((tenant, user_id))

    async def replace(
        self, tenant: str, user_id: str, old: str | None, new: Profile | None
    ) -> bool:
        found = self._profiles.get((tenant, user_id))
        if (found.version if found else None) != old:
            return False
        if new is None:
            self._profiles.pop((tenant, user_id), None)
        else:
            self._profiles[tenant, user_id] = new
        return True
