"""Every contract test runs over all four stores."""

from collections.abc import AsyncGenerator

import pytest

from service.settings import Settings
from tests.support.stores import Kept, kept


@pytest.fixture(params=["memory", "postgres", "redis", "hybrid"])
def store_settings(request: pytest.FixtureRequest) -> Settings:
    """Small limits, so that a few dozen messages reach them; only the needed servers start."""
    needs_postgres = request.param in {"postgres", "hybrid"}
    needs_redis = request.param in {"redis", "hybrid"}
    return Settings(
        store=request.param,
        database_url=request.getfixturevalue("database_url") if needs_postgres else None,
        redis_url=request.getfixturevalue("redis_url") if needs_redis else None,
        hot_messages_max=20,
        turn_lease_seconds=1.0,
        archive_wait_seconds=0.5,
    )


@pytest.fixture
async def memory(store_settings: Settings) -> AsyncGenerator[Kept]:
    async with kept(store_settings) as store:
        yield store
