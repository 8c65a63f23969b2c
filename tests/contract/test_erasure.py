"""Forgetting a user, over all four stores."""

import asyncio

import msgspec
import pytest

from service.bootstrap.ambient import SystemClock
from service.core.erasing import Erasing
from service.core.profiles import UserProfiles
from service.domain.errors import InvalidValue, SessionNotFound, UserNotFound
from service.domain.ids import TurnId
from service.domain.sessions import SessionDocument
from service.ports import Append, Begin, Create, Erased, Finish, Once, PageQuery, SessionQuery
from service.settings import Settings
from tests.support.stores import ref, said

TENANT = "default"


async def append(memory, session, *contents, user=None, once=None, tenant=TENANT):
    bodies = tuple(said(content) for content in contents)
    command = Append(ref=ref(session, tenant), bodies=bodies, user_id=user, once=once)
    return await memory.store.transcripts.append(command)


async def chat(memory, session, user, *, once=None, finishes=True, token="t"):
    begin = Begin(
        ref=ref(session),
        turn_id=TurnId("turn"),
        body=said("question"),
        user_id=user,
        once=once,
        lease_token=token,
    )
    await memory.store.turns.begin(begin)
    if finishes:
        await end(memory, session, once=once, token=token)


async def end(memory, session, *, once=None, token="t"):
    finish = Finish(
        ref=ref(session),
        turn_id=TurnId("turn"),
        lease_token=token,
        body=said("answer", "assistant"),
        result=b'"answer"',
        once=once,
    )
    return await memory.store.turns.finish(finish)


@pytest.fixture
def store_settings(store_settings: Settings) -> Settings:
    """On a busy machine a flush may take longer than other tests want to wait."""
    return msgspec.structs.replace(store_settings, archive_wait_seconds=10.0)


async def erase(memory, user="ada", tenant=TENANT) -> Erased:
    """Beside a flusher, as the service runs."""
    clock = SystemClock()
    profiles = UserProfiles(memory.store.profiles, bytes_max=1000, clock=clock)
    erasing = Erasing(memory.store.erasure, profiles.forget, clock)
    work = asyncio.ensure_future(erasing.erase(tenant, user))
    while not work.done():
        await memory.flush()
        await asyncio.sleep(0.005)
    return (await work).erased


async def owned(memory, user):
    return [found.session_id async for found in memory.store.user_sessions.walk(TENANT, user)]


def once(key, operation="append"):
    return Once(operation=operation, key=key, fingerprint="f")


@pytest.mark.parametrize("flushed", [False, True])
async def test_nothing_of_an_erased_user_is_found(memory, flushed):
    document = SessionDocument(metadata={"a": 1})
    await memory.store.sessions.create(Create(ref=ref("made"), user_id="ada", document=document))
    await append(memory, "said", "a", "b", user="ada")
    await chat(memory, "asked", "ada")
    if flushed:
        await memory.flush()

    erased = await erase(memory)
    hot = 0 if memory.name == "postgres" else 3
    assert erased.hot_sessions == hot
    assert erased.dead_letters == erased.profiles == 0
    if memory.name == "postgres" or (memory.name == "hybrid" and flushed):
        assert (erased.archive_sessions, erased.archive_messages) == (3, 4)
    elif memory.name == "hybrid":
        assert erased.journal_entries == 5
    for name in ("made", "said", "asked"):
        with pytest.raises(SessionNotFound):
            await memory.store.sessions.get(ref(name))
        with pytest.raises(SessionNotFound):
            await memory.store.transcripts.page(ref(name), PageQuery(limit=10))
    page = await memory.store.sessions.newest(SessionQuery(tenant=TENANT, limit=10))
    assert page.items == ()


async def test_others_are_untouched(memory):
    await append(memory, "a", "x", user="ada")
    await append(memory, "b", "y", user="eve")
    await append(memory, "c", "z")
    await append(memory, "a", "w", user="ada", tenant="other")
    await memory.flush()
    await append(memory, "b", "y2", user="eve", once=once("k"))

    await erase(memory)
    for place, count in ((ref("b"), 2), (ref("c"), 1), (ref("a", "other"), 1)):
        assert len(await memory.store.transcripts.page(place, PageQuery(limit=10))) == count
    replayed = await append(memory, "b", "y2", user="eve", once=once("k"))
    assert replayed.replayed


async def test_an_erased_users_keys_are_forgotten_and_counted(memory):
    await append(memory, "s", "a", user="ada", once=once("k1"))
    await append(memory, "s", "b", user="ada", once=once("k2"))
    await chat(memory, "s", "ada", once=once("k3", "chat"))
    await append(memory, "s", "unkeyed", user="ada")

    erased = await erase(memory)
    # PostgreSQL and Redis remember turns without a key as well, PostgreSQL appends too.
    assert erased.idempotency_records >= 3
    again = await append(memory, "s", "a", user="ada", once=once("k1"))
    assert not again.replayed
    [message] = await memory.store.transcripts.page(ref("s"), PageQuery(limit=10))
    assert message.content == "a"


async def test_of_an_unknown_user_nothing_is_erased(memory):
    await append(memory, "s", "a", user="ada")
    with pytest.raises(UserNotFound):
        await erase(memory, "nobody")
    with pytest.raises(UserNotFound):
        await erase(memory, "ada", "other")
    with pytest.raises(InvalidValue, match="user_id"):
        await erase(memory, "")
    assert await owned(memory, "ada") == ["s"]

    await erase(memory)
    with pytest.raises(UserNotFound):
        await erase(memory)


@pytest.mark.parametrize("key", [None, once("k", "chat")])
async def test_a_running_turn_is_cancelled_and_says_nothing(memory, key):
    await chat(memory, "s", "ada", once=key, finishes=False)
    await erase(memory)

    assert await memory.store.turns.renew(ref("s"), "t") == "lost"
    finished = await end(memory, "s", once=key)
    assert (finished.outcome, finished.message_id) == ("cancelled", None)
    with pytest.raises(SessionNotFound):
        await memory.store.sessions.get(ref("s"))

    await chat(memory, "s", "ada", once=key, token="t2")
    found = await memory.store.transcripts.page(ref("s"), PageQuery(limit=10))
    assert [message.content for message in found] == ["question", "answer"]


async def test_what_is_said_after_an_erasure_is_kept(memory):
    await append(memory, "s", "old", user="ada")
    await memory.flush()
    await erase(memory)
    await append(memory, "s", "new", user="eve")
    await memory.flush()

    session = await memory.store.sessions.get(ref("s"))
    assert (session.id, session.user_id, session.message_count) == ("s", "eve", 1)
    assert await owned(memory, "eve") == ["s"]
    with pytest.raises(UserNotFound):
        await erase(memory)


async def test_two_erasures_at_once_leave_nothing_and_count_once(memory):
    for n in range(20):
        await append(memory, f"s{n}", "a", user="ada")
        if n == 9:
            await memory.flush()

    results = await asyncio.gather(erase(memory), erase(memory), return_exceptions=True)
    assert await owned(memory, "ada") == []
    erased = [result for result in results if isinstance(result, Erased)]
    assert len(erased) + sum(isinstance(result, UserNotFound) for result in results) == 2
    sessions = sum(max(one.hot_sessions, one.archive_sessions) for one in erased)
    assert sessions >= 20
    assert sum(one.hot_sessions for one in erased) in {0, 20}


@pytest.mark.parametrize("count", [0, 1, 450])
async def test_all_sessions_of_a_user_are_walked_once(memory, count):
    for n in range(count):
        await append(memory, f"s{n}", "a", user="ada")
        if n == count // 2:
            await memory.flush()
    await append(memory, "other", "a", user="eve")

    found = await owned(memory, "ada")
    assert sorted(found) == sorted(f"s{n}" for n in range(count))
