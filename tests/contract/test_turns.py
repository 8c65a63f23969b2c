"""Turns: what every store promises of their begin and their end."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from service.core.background import running
from service.domain.context import ContextOptions
from service.domain.errors import (
    IdempotencyKeyReused,
    RequestRunning,
    SessionBusy,
    SessionNotFound,
)
from service.domain.ids import TurnId
from service.domain.messages import Content
from service.domain.sessions import SessionDocument
from service.ports import (
    Append,
    Begin,
    Begun,
    Create,
    Finish,
    Once,
    PageQuery,
    Replayed,
    TurnRecord,
    Wanted,
)
from tests.support.polling import eventually
from tests.support.stores import Kept, ref, said, showing

ONCE = Once(operation="chat", key="k", fingerprint="f")


def begin(
    text="hi",
    *,
    token="t1",
    once=None,
    last: int | None = 10,
    user=None,
    options: ContextOptions | None = None,
    cost=0,
    durability: Wanted = "journaled",
):
    return Begin(
        ref=ref(),
        turn_id=TurnId(f"turn-{token}"),
        body=said(text),
        options=showing(last) if options is None else options,
        cost=cost,
        user_id=user,
        once=once,
        lease_token=token,
        durability=durability,
    )


def finish(
    text: str | None = "hello",
    *,
    token="t1",
    once=None,
    result=b'{"r":1}',
    durability: Wanted = "journaled",
):
    return Finish(
        ref=ref(),
        turn_id=TurnId(f"turn-{token}"),
        lease_token=token,
        body=None if text is None else said(text, "assistant"),
        result=result,
        once=once,
        durability=durability,
    )


async def contents(memory: Kept) -> list[Content]:
    messages = await memory.store.transcripts.page(ref(), PageQuery(limit=1000))
    return [message.content for message in messages]


async def append(memory: Kept, *texts: str):
    command = Append(ref=ref(), bodies=tuple(map(said, texts)))
    return await memory.store.transcripts.append(command)


async def test_a_turn_remembers_both_sides(memory):
    begun = await memory.store.turns.begin(begin())
    assert isinstance(begun, Begun)
    assert begun.history.messages == ()
    finished = await memory.store.turns.finish(finish())

    assert finished.outcome == "stored"
    assert finished.message_id > begun.user_message_id
    assert await contents(memory) == ["hi", "hello"]


async def test_the_history_is_what_stood_before_the_message(memory):
    await append(memory, *(str(n) for n in range(45)))
    await memory.flush()
    await append(memory, "45")

    begun = await memory.store.turns.begin(begin(last=3))
    assert [m.content for m in begun.history.messages][-3:] == ["43", "44", "45"]
    await memory.store.turns.finish(finish())
    begun = await memory.store.turns.begin(begin("more", token="t2", last=None))
    shown = [m.content for m in begun.history.messages]
    assert shown == [*(str(n) for n in range(46)), "hi", "hello"]


async def test_the_sessions_own_window_decides_where_asked(memory):
    document = SessionDocument(context=ContextOptions(strategy="buffer"))
    await memory.store.sessions.create(Create(ref=ref(), user_id=None, document=document))
    await append(memory, *(str(n) for n in range(60)))
    await memory.flush()

    begun = await memory.store.turns.begin(begin(options=ContextOptions()))
    assert len(begun.history.messages) == 60
    assert begun.history.document == document


async def test_a_second_turn_finds_the_session_busy(memory):
    await memory.store.turns.begin(begin())

    with pytest.raises(SessionBusy) as caught:
        await memory.store.turns.begin(begin(token="t2"))
    assert caught.value.retry_after_seconds == 1
    assert await contents(memory) == ["hi"]
    await memory.store.turns.finish(finish())
    assert isinstance(await memory.store.turns.begin(begin(token="t3")), Begun)


async def test_of_racing_turns_one_begins(memory):
    outcomes = await asyncio.gather(
        *(memory.store.turns.begin(begin(token=f"t{n}")) for n in range(8)),
        return_exceptions=True,
    )

    assert sum(isinstance(outcome, Begun) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, SessionBusy) for outcome in outcomes) == 7
    assert await contents(memory) == ["hi"]


async def test_appends_beside_a_turn_take_their_place(memory):
    await memory.store.turns.begin(begin())
    await append(memory, "beside")
    await memory.store.turns.finish(finish())

    assert await contents(memory) == ["hi", "beside", "hello"]


async def test_another_users_session_is_not_found(memory):
    await memory.store.turns.begin(begin(user="ada"))
    await memory.store.turns.finish(finish())
    await memory.flush()

    with pytest.raises(SessionNotFound):
        await memory.store.turns.begin(begin(user="eve", token="t2"))
    assert await contents(memory) == ["hi", "hello"]


async def test_a_repeated_key_gets_the_finished_turn(memory):
    await memory.store.turns.begin(begin(once=ONCE))
    finished = await memory.store.turns.finish(finish(once=ONCE))

    again = await memory.store.turns.begin(begin(once=ONCE, token="t2"))
    assert again == Replayed(result=b'{"r":1}', message_id=finished.message_id)
    assert await contents(memory) == ["hi", "hello"]


async def test_a_repeated_key_beside_its_running_turn_is_told_so(memory):
    await memory.store.turns.begin(begin(once=ONCE))

    with pytest.raises(RequestRunning):
        await memory.store.turns.begin(begin(once=ONCE, token="t2"))
    with pytest.raises(IdempotencyKeyReused):
        await memory.store.turns.begin(
            begin("else", once=msgspec.structs.replace(ONCE, fingerprint="g"), token="t2")
        )


async def test_a_failed_turn_is_taken_up_without_a_second_user_message(memory):
    first = await memory.store.turns.begin(begin(once=ONCE))
    await memory.store.turns.fail(finish(None, once=ONCE))
    assert await contents(memory) == ["hi"]
    await append(memory, "beside")

    second = await memory.store.turns.begin(begin(once=ONCE, token="t2"))
    assert second.user_message_id == first.user_message_id
    assert second.history.messages == ()
    await memory.store.turns.finish(finish(once=ONCE, token="t2"))
    assert await contents(memory) == ["hi", "beside", "hello"]


async def test_a_failed_turn_whose_message_was_cleared_says_it_again(memory):
    await append(memory, "old")
    await memory.store.turns.begin(begin(once=ONCE))
    await memory.store.turns.fail(finish(None, once=ONCE))
    await memory.store.transcripts.clear(ref())

    await memory.store.turns.begin(begin(once=ONCE, token="t2"))
    await memory.store.turns.finish(finish(once=ONCE, token="t2"))
    assert await contents(memory) == ["hi", "hello"]


async def test_a_turn_taken_up_sees_what_stood_before_its_message(memory):
    await append(memory, *(str(n) for n in range(40)))
    await memory.flush()
    await memory.store.turns.begin(begin(once=ONCE, last=3))
    await memory.store.turns.fail(finish(None, once=ONCE))
    await append(memory, *(f"beside {n}" for n in range(30)))
    await memory.flush()

    begun = await memory.store.turns.begin(begin(once=ONCE, token="t2", last=3))
    assert [message.content for message in begun.history.messages] == ["37", "38", "39"]


async def test_a_failed_turn_of_a_deleted_session_says_its_message_again(memory):
    await append(memory, "old")
    await memory.store.turns.begin(begin(once=ONCE))
    await memory.store.turns.fail(finish(None, once=ONCE))
    await memory.store.sessions.delete(ref())
    await memory.flush()

    await memory.store.turns.begin(begin(once=ONCE, token="t2"))
    await memory.store.turns.finish(finish(once=ONCE, token="t2"))
    assert await contents(memory) == ["hi", "hello"]


async def test_a_dead_owners_session_is_free_after_the_lease(memory):
    await memory.store.turns.begin(begin(once=ONCE))

    async def taken_over() -> bool:
        try:
            await memory.store.turns.begin(begin(once=ONCE, token="t2"))
        except RequestRunning:
            return False
        return True

    await eventually(taken_over, within_seconds=5)
    late = await memory.store.turns.finish(finish("too late", once=ONCE))
    assert (late.outcome, late.message_id) == ("lost", None)
    await memory.store.turns.finish(finish(once=ONCE, token="t2"))
    assert await contents(memory) == ["hi", "hello"]


async def test_a_renewed_lease_lasts(memory):
    await memory.store.turns.begin(begin())
    for _ in range(8):
        await asyncio.sleep(0.2)  # The lease is 1 s: what is tested is the passing of time.
        assert await memory.store.turns.renew(ref(), "t1") == "held"

    with pytest.raises(SessionBusy):
        await memory.store.turns.begin(begin(token="t2"))
    assert await memory.store.turns.renew(ref(), "t2") == "lost"


@pytest.mark.parametrize("how", ["clear", "delete"])
async def test_clear_and_delete_cancel_a_running_turn(memory, how):
    await append(memory, "before")
    await memory.store.turns.begin(begin())
    if how == "clear":
        await memory.store.transcripts.clear(ref())
    else:
        await memory.store.sessions.delete(ref())

    finished = await memory.store.turns.finish(finish())
    assert (finished.outcome, finished.message_id) == ("cancelled", None)
    if how == "clear":
        assert await contents(memory) == []
    else:
        with pytest.raises(SessionNotFound):
            await contents(memory)


async def test_finishing_twice_is_finishing_once(memory):
    await memory.store.turns.begin(begin(once=ONCE))
    first = await memory.store.turns.finish(finish(once=ONCE))
    second = await memory.store.turns.finish(finish(once=ONCE))

    assert second == first
    assert await contents(memory) == ["hi", "hello"]


async def found(memory: Kept, turn_id: str = "turn-t1", *, cancel: bool = False) -> Any:
    return await memory.store.turns.find(ref(), TurnId(turn_id), cancel=cancel)


async def test_a_turn_is_found_by_its_id_while_it_runs_and_after(memory):
    assert await found(memory) is None
    begun = await memory.store.turns.begin(begin(once=ONCE))
    assert isinstance(begun, Begun)
    running = TurnRecord(state="running", user_message_id=begun.user_message_id)
    assert await found(memory) == running
    assert await found(memory, "turn-t2") is None
    finished = await memory.store.turns.finish(finish(once=ONCE))
    ended = TurnRecord(
        state="ended",
        user_message_id=begun.user_message_id,
        result=b'{"r":1}',
        message_id=finished.message_id,
    )
    await memory.flush()
    assert await found(memory) == ended
    other = msgspec.structs.replace(begin(), ref=ref("other"), turn_id=TurnId("turn-o"))
    await memory.store.turns.begin(other)
    assert await found(memory, "turn-o") is None


async def test_a_turn_is_nobody_elses(memory):
    await memory.store.turns.begin(begin())
    # As many tenants as it takes to share what is shared: a shard.
    for number in range(64):
        others = ref(tenant=f"tenant{number}")
        assert await memory.store.turns.find(others, TurnId("turn-t1"), cancel=True) is None
    assert await memory.store.turns.renew(ref(), "t1") == "held"
    assert (await found(memory)).state == "running"


async def test_a_turn_that_is_asked_to_end_is_told_at_its_next_renewal(memory):
    assert await found(memory, cancel=True) is None
    await memory.store.turns.begin(begin())
    assert await memory.store.turns.renew(ref(), "t1") == "held"
    asked = await found(memory, cancel=True)
    assert asked is not None
    assert asked.state == "running"
    for _ in range(2):
        assert await memory.store.turns.renew(ref(), "t1") == "cancelled"
    await memory.store.turns.finish(finish("so far"))
    assert (await found(memory, cancel=True)).state == "ended"
    # The next turn is another one.
    await memory.store.turns.begin(begin(token="t2"))
    assert await memory.store.turns.renew(ref(), "t2") == "held"


@asynccontextmanager
async def followed(memory: Kept, token: str) -> AsyncGenerator[asyncio.Event]:
    """A turn that has begun, and whether it was told to look."""
    stops, look = memory.store.turns.stops, asyncio.Event()
    async with running(memory.store.turn_components):
        if memory.name != "postgres":
            await eventually(lambda: stops.listening, within_seconds=5)
        await memory.store.turns.begin(begin(token=token))
        with stops.told(token, look.set, since=stops.changes):
            yield look


async def stopped(memory: Kept, how: str) -> None:
    match how:
        case "cancel":
            assert (await found(memory, cancel=True)).state == "running"
        case "clear":
            await memory.store.transcripts.clear(ref())
        case _:
            await memory.store.sessions.delete(ref())


@pytest.mark.parametrize("how", ["cancel", "clear", "delete"])
async def test_a_turn_that_is_to_end_is_told_to_look(memory, how):
    stops, others = memory.store.turns.stops, asyncio.Event()
    async with followed(memory, "t1") as look:
        with stops.told("t2", others.set, since=stops.changes):
            assert not look.is_set()
            await stopped(memory, how)
            # PostgreSQL tells nobody, and says so: there a turn looks often.
            assert stops.listening == (memory.name != "postgres")
            if stops.listening:
                await asyncio.wait_for(look.wait(), 5)
            assert await memory.store.turns.renew(ref(), "t1") != "held"
            assert not others.is_set()


async def test_a_stop_that_came_before_its_turn_was_followed_is_told(memory):
    async with followed(memory, "t1") as look:
        if not memory.store.turns.stops.listening:
            return
        await memory.store.turns.finish(finish())
        stops = memory.store.turns.stops
        since = stops.changes
        begun = await memory.store.turns.begin(begin(token="t2"))
        assert isinstance(begun, Begun)
        with stops.told("t2", look.set, since=since):
            assert not look.is_set()
        await memory.store.transcripts.clear(ref())

        async def told() -> bool:
            with stops.told("t2", look.set, since=since):
                return look.is_set()

        await eventually(told, within_seconds=5)


async def test_a_failed_turn_is_found_with_its_end_and_keeps_its_id(memory):
    first = await memory.store.turns.begin(begin(once=ONCE))
    await memory.store.turns.fail(finish(None, once=ONCE, result=b"failed"))
    failed = await found(memory)
    assert (failed.state, failed.result, failed.message_id) == ("ended", b"failed", None)
    again = await memory.store.turns.begin(begin(token="t2", once=ONCE))
    assert isinstance(again, Begun)
    assert (again.turn_id, again.user_message_id) == ("turn-t1", first.user_message_id)
    assert await found(memory, "turn-t2") is None
    assert (await found(memory)).state == "running"
    await memory.store.turns.finish(finish("yes", token="t2", once=ONCE, result=b"done"))
    assert (await found(memory)).result == b"done"


async def test_a_turn_whose_lease_ended_is_interrupted_for_good(memory):
    begun = await memory.store.turns.begin(begin(once=ONCE))
    assert isinstance(begun, Begun)

    async def interrupted() -> bool:
        return (await found(memory)).state == "interrupted"

    await eventually(interrupted, within_seconds=5)
    assert await memory.store.turns.renew(ref(), "t1") == "lost"
    assert (await memory.store.turns.finish(finish(once=ONCE))).outcome == "lost"
    assert await interrupted()
    again = await memory.store.turns.begin(begin(token="t2", once=ONCE))
    assert isinstance(again, Begun)
    assert again.user_message_id == begun.user_message_id
    assert await contents(memory) == ["hi"]


async def test_a_clear_cancels_a_turn_and_a_deletion_forgets_it(memory):
    await memory.store.turns.begin(begin())
    await memory.store.transcripts.clear(ref())
    assert (await found(memory)).state == "cancelled"
    await memory.store.turns.begin(begin(token="t2"))
    await memory.store.turns.finish(finish(token="t2"))
    await memory.store.sessions.delete(ref())
    assert await found(memory, "turn-t2") is None
    await memory.flush()
    await append(memory, "new")
    assert await found(memory, "turn-t2") is None
    assert await found(memory) is None


async def test_a_key_of_a_deleted_session_runs_its_turn_again(memory):
    await memory.store.turns.begin(begin(once=ONCE))
    await memory.store.turns.finish(finish(once=ONCE))
    await memory.store.sessions.delete(ref())
    again = await memory.store.turns.begin(begin(token="t2", once=ONCE))
    assert isinstance(again, Begun)
    assert again.turn_id == "turn-t2"
    await memory.store.turns.finish(finish("anew", token="t2", once=ONCE))
    assert await contents(memory) == ["hi", "anew"]


async def test_who_waits_for_a_session_is_served_in_the_order_of_arrival(memory):
    turns = memory.store.turns
    await turns.begin(begin())

    async def busy(token: str, *, waits: bool = True) -> bool:
        command = msgspec.structs.replace(begin(token, token=token), waits=waits)
        try:
            await turns.begin(command)
        except SessionBusy:
            return True
        return False

    assert await busy("t2")
    assert await busy("t3")
    assert await busy("t4")
    await turns.finish(finish())
    # Who did not wait comes after those who do, and those one after the other.
    assert await busy("t5", waits=False)
    assert await busy("t4")
    assert await busy("t3")
    assert not await busy("t2")
    assert await busy("t3")
    await turns.finish(finish(token="t2"))
    assert await busy("t4")
    assert not await busy("t3")
    await turns.finish(finish(token="t3"))

    async def forgotten() -> bool:
        # The last one does not look any more.
        return not await busy("t5", waits=False)

    await eventually(forgotten, within_seconds=5)
    assert [text for text in await contents(memory) if text != "hello"] == ["hi", "t2", "t3", "t5"]
