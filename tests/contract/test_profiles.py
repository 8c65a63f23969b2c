"""Profiles: what every store promises of them."""

import asyncio
from datetime import UTC, datetime

import pytest

from service.bootstrap.ambient import SystemClock
from service.core.profiles import Condition, UserProfiles
from service.domain.errors import ProfileChanged, ProfileNotFound
from service.domain.ids import MessageId
from service.domain.profiles import Fact, Profile
from tests.support.stores import Kept

ANY = Condition()


def profile(version: int, *facts: str) -> Profile:
    return Profile(
        version=f"00000000-0000-4000-8000-{version:012x}",
        topics={"zoo": [Fact(fact=fact) for fact in facts], "art": []},
        updated_at=datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC),
    )


def users(memory: Kept) -> UserProfiles:
    return UserProfiles(memory.store.profiles, bytes_max=10_000, clock=SystemClock())


async def test_a_profile_comes_back_as_it_was_put(memory):
    profiles = memory.store.profiles
    assert await profiles.get("t", "ada") is None
    first = profile(1, "has a 🦉", "\\u0000 </user_profile>")
    assert await profiles.replace("t", "ada", None, first)
    assert await profiles.get("t", "ada") == first
    assert list(first.topics) == ["zoo", "art"]
    assert await profiles.get("t", "ada") == first


async def test_only_the_version_that_was_seen_is_replaced(memory):
    profiles = memory.store.profiles
    first, second, other = profile(1, "a"), profile(2, "b"), profile(3, "c")
    assert not await profiles.replace("t", "ada", first.version, second)
    assert await profiles.replace("t", "ada", None, first)
    assert not await profiles.replace("t", "ada", None, other)
    assert await profiles.replace("t", "ada", first.version, second)
    assert not await profiles.replace("t", "ada", first.version, other)
    assert not await profiles.replace("t", "ada", first.version, None)
    assert await profiles.get("t", "ada") == second
    assert await profiles.replace("t", "ada", second.version, None)
    assert await profiles.get("t", "ada") is None


async def test_a_repeated_write_is_known_again(memory):
    profiles = memory.store.profiles
    first, second = profile(1, "a"), profile(2, "b")
    await profiles.replace("t", "ada", None, first)
    await profiles.replace("t", "ada", first.version, second)
    if memory.name != "memory":
        assert await profiles.replace("t", "ada", first.version, second)
    assert await profiles.get("t", "ada") == second


@pytest.mark.parametrize("user", ["a:b", "a%3Ab", "{cm:00}", "a/b", "..", " ", "🦉", "x" * 255])
async def test_any_user_id_names_its_own_profile_in_its_own_tenant(memory, user):
    profiles = memory.store.profiles
    await profiles.replace("t", user, None, profile(1, "mine"))
    await profiles.replace("t:a", user, None, profile(2, "theirs"))
    found = await profiles.get("t", user)
    assert found == profile(1, "mine")
    assert await profiles.get("t", user.replace(":", "%3A") + "x") is None
    assert await profiles.get("t:a", user) == profile(2, "theirs")


async def test_patches_of_different_topics_at_once_lose_nothing(memory):
    profiles = users(memory)
    names = [f"topic {number}" for number in range(8)]
    await asyncio.gather(
        *(profiles.patch("t", "ada", {name: [Fact(fact=name)]}, ANY) for name in names)
    )
    assert sorted((await profiles.get("t", "ada")).topics) == names


async def test_a_patch_merges_replaces_and_removes(memory):
    profiles = users(memory)
    message = MessageId("01a20e0b-ec4a-7000-8000-001bb6144bd5")
    source = MessageId(message.upper())
    facts = [Fact(fact="red", source_message_id=source)]
    made = await profiles.patch("t", "ada", {"color": facts, "food": [Fact(fact="pie")]}, ANY)
    assert made.made
    changed = await profiles.patch("t", "ada", {"food": None, "pet": []}, ANY)
    assert not changed.made
    assert changed.profile.topics == {
        "color": [Fact(fact="red", source_message_id=message)],
        "pet": [],
    }
    assert (await profiles.patch("t", "ada", None, ANY)).profile.topics == {}


async def test_conditions_hold_or_nothing_changes(memory):
    profiles = users(memory)
    with pytest.raises(ProfileChanged):
        await profiles.put("t", "ada", {}, Condition(exists=True))
    first = (await profiles.put("t", "ada", {"a": []}, Condition(exists=False))).profile
    with pytest.raises(ProfileChanged):
        await profiles.put("t", "ada", {}, Condition(exists=False))
    stale = Condition(versions=(profile(9).version,))
    for change in (
        profiles.put("t", "ada", {}, stale),
        profiles.patch("t", "ada", {"a": None}, stale),
        profiles.delete("t", "ada", stale),
    ):
        with pytest.raises(ProfileChanged):
            await change
    assert (await profiles.get("t", "ada")).topics == {"a": []}
    await profiles.delete("t", "ada", Condition(versions=(first.version,)))
    with pytest.raises(ProfileNotFound):
        await profiles.get("t", "ada")
    with pytest.raises(ProfileNotFound):
        await profiles.delete("t", "ada", ANY)
