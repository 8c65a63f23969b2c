"""The hot copy of a profile: never older than the archive's row, and no SQL while it is there."""

from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from service.bootstrap.ambient import SystemClock
from service.bootstrap.stores import open_store
from service.core.tiered.profiles import TieredProfiles
from service.domain.errors import ArchiveUnavailable
from service.domain.profiles import Fact, Profile
from tests.support.stores import Kept, Recorder, kept

NAME = ("default", "ada")


def profile(version: int) -> Profile:
    return Profile(
        version=f"00000000-0000-4000-8000-{version:012x}",
        topics={"a": [Fact(fact=str(version))]},
        updated_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


@pytest.fixture
async def hybrid(hybrid_settings) -> AsyncGenerator[Kept]:
    async with kept(hybrid_settings) as store:
        yield store


@pytest.fixture
def profiles(hybrid: Kept) -> TieredProfiles:
    tiered: Any = hybrid.store.profiles
    return tiered


@pytest.fixture
async def redis(redis_url) -> AsyncGenerator[Redis]:
    async with Redis.from_url(redis_url, protocol=2) as client:
        yield client


async def copy_key(redis: Redis) -> Any:
    [key] = await redis.keys("*:profile:*")
    return key


async def test_a_warm_read_asks_no_archive_and_a_cold_one_does(hybrid_settings, profiles, redis):
    await profiles.replace(*NAME, None, profile(1))
    url = "postgresql://nobody@127.0.0.1:1/none"
    away = msgspec.structs.replace(hybrid_settings, database_url=url)
    async with open_store(away, clock=SystemClock(), observer=Recorder()) as store:
        assert await store.profiles.get(*NAME) == profile(1)
        with pytest.raises(ArchiveUnavailable):
            await store.profiles.get("default", "eve")
        with pytest.raises(ArchiveUnavailable):
            await store.profiles.replace(*NAME, profile(1).version, profile(2))
        # How that write ended nobody knows here: the copy is not trusted any more.
        with pytest.raises(ArchiveUnavailable):
            await store.profiles.get(*NAME)
    assert await profiles.get(*NAME) == profile(1)
    assert (await redis.get(await copy_key(redis))).startswith(b"writing:")
    assert 0 < await redis.pttl(await copy_key(redis)) <= 15_000


async def test_that_there_is_no_profile_is_known_as_well(profiles, redis):
    assert await profiles.get(*NAME) is None
    assert await redis.get(await copy_key(redis)) == b"-"
    assert await profiles.replace(*NAME, None, profile(1))
    assert await profiles.get(*NAME) == profile(1)
    assert await profiles.replace(*NAME, profile(1).version, None)
    assert await profiles.get(*NAME) is None
    assert 0 < await redis.pttl(await copy_key(redis)) <= 1_800_000


async def test_a_reader_with_an_old_row_does_not_bring_it_back(profiles, redis):
    await profiles._archive.replace(*NAME, None, profile(1))
    assert (await profiles._hot.get(*NAME)).state == "empty"
    old = await profiles._archive.get(*NAME)

    await profiles.replace(*NAME, profile(1).version, profile(2))
    await profiles._hot.fill(*NAME, old)
    assert await profiles.get(*NAME) == profile(2)


async def test_a_reader_with_an_old_row_does_not_fill_beside_a_writer_that_died(profiles):
    await profiles._archive.replace(*NAME, None, profile(1))
    old = await profiles._archive.get(*NAME)
    await profiles._hot.mark(*NAME, "dies")
    await profiles._archive.replace(*NAME, profile(1).version, profile(2))

    await profiles._hot.fill(*NAME, old)
    assert await profiles.get(*NAME) == profile(2)


async def test_writers_that_overlap_leave_a_mark_and_no_value(profiles):
    await profiles._hot.mark(*NAME, "first")
    await profiles._hot.mark(*NAME, "second")
    await profiles._archive.replace(*NAME, None, profile(1))
    await profiles._hot.settle(*NAME, "first", profile(1))
    await profiles._hot.settle(*NAME, "second", None)
    assert (await profiles._hot.get(*NAME)).state == "marked"
    assert await profiles.get(*NAME) == profile(1)


async def test_a_profile_made_beside_one_made_and_deleted_is_seen(profiles):
    await profiles._hot.mark(*NAME, "slow")
    assert await profiles.replace(*NAME, None, profile(1))
    assert await profiles.replace(*NAME, profile(1).version, None)
    assert await profiles.get(*NAME) is None
    await profiles._archive.replace(*NAME, None, profile(2))
    await profiles._hot.settle(*NAME, "slow", profile(2))
    assert await profiles.get(*NAME) == profile(2)


async def test_a_mark_that_was_evicted_lets_no_old_row_stay(profiles, redis):
    await profiles._archive.replace(*NAME, None, profile(1))
    await profiles._hot.mark(*NAME, "writer")
    await redis.delete(await copy_key(redis))
    assert await profiles.get(*NAME) == profile(1)
    await profiles._archive.replace(*NAME, profile(1).version, profile(2))
    await profiles._hot.settle(*NAME, "writer", profile(2))
    assert await profiles.get(*NAME) == profile(2)


async def test_a_copy_that_was_evicted_is_filled_again(profiles, redis):
    await profiles.replace(*NAME, None, profile(1))
    await redis.delete(await copy_key(redis))
    assert await profiles.get(*NAME) == profile(1)
    assert (await profiles._hot.get(*NAME)).profile == profile(1)
