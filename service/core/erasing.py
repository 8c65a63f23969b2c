"""Erasing: all that is known of a user, in every tier, for good."""

from collections.abc import Awaitable, Callable
from datetime import datetime

import msgspec

from service.domain.errors import UserNotFound
from service.domain.ids import check_id, time_of
from service.ports import Clock, Erased, Erasure

ForgetProfile = Callable[[str, str], Awaitable[bool]]
"""Deletes the profile of a tenant's user; whether there was one."""


class UserErased(msgspec.Struct, frozen=True, kw_only=True):
    erased: Erased
    completed_at: datetime


class Erasing:
    """Forgetting users."""

    def __init__(self, erasure: Erasure, forget_profile: ForgetProfile, clock: Clock) -> None:
        self._erasure = erasure
        self._forget_profile = forget_profile
        self._clock = clock

    async def erase(self, tenant: str, user_id: str) -> UserErased:
        """When it returns nothing is left. Raises UserNotFound, and the errors of Erasure.erase."""
        check_id(user_id, "user_id")
        # The profile first: no turn that begins later shows it to a model any more.
        had_profile = await self._forget_profile(tenant, user_id)
        erased = await self._erasure.erase(tenant, user_id)
        if erased is None and not had_profile:
            raise UserNotFound
        return UserErased(
            erased=msgspec.structs.replace(erased or Erased(), profiles=int(had_profile)),
            completed_at=time_of(self._clock.milliseconds()),
        )
