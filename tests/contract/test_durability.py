"""Durability: each store gives what it can, says what was reached, and refuses the rest whole."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator

import pytest

from service.core.background import ended
from service.domain.errors import ArchiveUnavailable, DurabilityUnavailable, SessionNotFound
from service.ports import Append, Once, PageQuery, Wanted
from tests.contract.test_turns import begin, finish
from tests.support.stores import Kept, ref, said

REACHED = {
    ("memory", "journaled"): "volatile",
    ("postgres", "journaled"): "archived",
    ("postgres", "fsynced"): "archived",
    ("postgres", "archived"): "archived",
    ("redis", "journaled"): "journaled",
    ("redis", "fsynced"): "fsynced",
    ("hybrid", "journaled"): "journaled",
    ("hybrid", "fsynced"): "fsynced",
    ("hybrid", "archived"): "archived",
}
WANTED: list[Wanted] = ["journaled", "fsynced", "archived"]


@contextlib.asynccontextmanager
async def flushing(memory: Kept) -> AsyncGenerator[None]:
    async def flush_on() -> None:
        while True:
            await memory.flush()
            await asyncio.sleep(0.01)

    task = asyncio.create_task(flush_on())
    yield
    await ended(task)


def append(wanted: Wanted, once: Once | None = None, session: str = "s") -> Append:
    return Append(ref=ref(session), bodies=(said("a"),), durability=wanted, once=once)


@pytest.mark.parametrize("wanted", WANTED)
async def test_an_append_reaches_what_was_wanted_or_changes_nothing(memory, wanted: Wanted):
    reached = REACHED.get((memory.name, wanted))
    async with flushing(memory):
        if reached is not None:
            appended = await memory.store.transcripts.append(append(wanted))
            assert appended.durability == reached
            return
        with pytest.raises(DurabilityUnavailable):
            await memory.store.transcripts.append(append(wanted))
        with pytest.raises(SessionNotFound):
            await memory.store.transcripts.page(ref(), PageQuery(limit=10))


@pytest.mark.parametrize("wanted", WANTED)
async def test_a_turn_is_refused_at_its_begin_where_its_end_cannot_be_kept(memory, wanted: Wanted):
    async with flushing(memory):
        if (memory.name, wanted) in REACHED:
            await memory.store.turns.begin(begin(durability=wanted))
            finished = await memory.store.turns.finish(finish(durability=wanted))
            assert finished.outcome == "stored"
            return
        with pytest.raises(DurabilityUnavailable):
            await memory.store.turns.begin(begin(durability=wanted))
        with pytest.raises(SessionNotFound):
            await memory.store.transcripts.page(ref(), PageQuery(limit=10))


async def test_writers_that_want_the_archive_share_its_commits(memory):
    if (memory.name, "archived") not in REACHED:
        return
    async with flushing(memory):
        results = await asyncio.gather(
            *(
                memory.store.transcripts.append(append("archived", session=f"s{n}"))
                for n in range(40)
            )
        )
    assert {result.durability for result in results} == {"archived"}


async def test_an_archive_that_does_not_commit_in_time_leaves_the_message_journaled(memory):
    if memory.name != "hybrid":
        return
    once = Once(operation="append", key="k", fingerprint="f")
    with pytest.raises(ArchiveUnavailable):
        await memory.store.transcripts.append(append("archived", once))
    messages = await memory.store.transcripts.page(ref(), PageQuery(limit=10))
    assert [message.content for message in messages] == ["a"]

    async with flushing(memory):
        again = await memory.store.transcripts.append(append("archived", once))
    assert (again.replayed, again.durability) == (True, "archived")
    assert [message.id for message in messages] == list(again.ids)


async def test_a_repeated_turn_waits_for_the_archive_again(memory):
    if memory.name != "hybrid":
        return
    once = Once(operation="chat", key="k", fingerprint="f")
    await memory.store.turns.begin(begin(once=once, durability="archived"))
    with pytest.raises(ArchiveUnavailable):
        await memory.store.turns.finish(finish(once=once, durability="archived"))
    again = begin(once=once, token="t2", durability="archived")
    with pytest.raises(ArchiveUnavailable):
        await memory.store.turns.begin(again)
    async with flushing(memory):
        replayed = await memory.store.turns.begin(again)
    assert replayed.message_id is not None


async def test_one_can_wait_until_a_session_is_archived(memory):
    appended = await memory.store.transcripts.append(append("journaled"))
    started = asyncio.get_running_loop().time()
    session = await memory.store.sessions.get(ref(), wait_seconds=0.2)
    assert asyncio.get_running_loop().time() - started < 2
    if memory.name == "hybrid":
        assert session.archived_through is None
    async with flushing(memory):
        session = await memory.store.sessions.get(ref(), wait_seconds=10)
    archives = memory.name in {"postgres", "hybrid"}
    assert session.archived_through == (appended.ids[-1] if archives else None)
    assert session.last_id == appended.ids[-1]
