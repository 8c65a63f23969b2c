"""Budgets and summaries: what every store promises of them."""

import asyncio

import msgspec
import pytest

from service.domain.context import ContextOptions, Need
from service.domain.errors import ContextTooLarge, SessionNotFound
from service.domain.ids import TurnId
from service.domain.messages import MessageBody, Role, encode_body
from service.domain.sessions import SessionDocument
from service.domain.summaries import Summary
from service.ports import Append, Begin, Begun, Create, PageQuery
from tests.support.stores import Kept, ref

TOKENS = 10


def counted(text: str, role: Role = "user") -> bytes:
    return encode_body(MessageBody(role=role, content=text, token_count=TOKENS))


async def append(memory: Kept, *texts: str, role: Role = "user"):
    command = Append(ref=ref(), bodies=tuple(counted(text, role) for text in texts))
    return (await memory.store.transcripts.append(command)).ids


def begin(options: ContextOptions, cost: int = 0) -> Begin:
    return Begin(
        ref=ref(),
        turn_id=TurnId("t"),
        body=counted("new"),
        options=options,
        cost=cost,
        user_id=None,
        once=None,
        lease_token="t",
    )


async def stored(memory: Kept) -> int:
    return len(await memory.store.transcripts.page(ref(), PageQuery(limit=1000)))


@pytest.mark.parametrize("flushed", [False, True])
async def test_as_many_messages_are_read_as_the_budget_needs(memory, flushed):
    await append(memory, "system", role="system")
    for start in range(0, 500, 50):
        await append(memory, *(str(n) for n in range(start, start + 50)))
        if flushed:
            await memory.flush()
    for tokens in (1, 50, 100, 2500, 4999):
        recent = await memory.store.transcripts.recent(ref(), Need(tokens=tokens))
        contents = [m.content for m in recent.messages if m.role == "user"]
        assert contents == [str(n) for n in range(500)][-len(contents) :]
        assert len(contents) * TOKENS >= tokens
        assert [m.content for m in (*recent.pinned, *recent.messages) if m.role == "system"]
    everything = await memory.store.transcripts.recent(ref(), Need(tokens=6000))
    assert len(everything.messages) + len(everything.pinned) == 501


@pytest.mark.parametrize(
    ("own", "asked", "over"),
    [
        (None, ContextOptions(strategy="tokens", max_tokens=100), True),
        (None, ContextOptions(max_tokens=101), False),
        (None, ContextOptions(strategy="tokens"), False),
        (None, ContextOptions(), False),
        (ContextOptions(strategy="tokens", max_tokens=100), ContextOptions(), True),
        (ContextOptions(max_tokens=100), ContextOptions(strategy="summary"), True),
        (ContextOptions(max_tokens=100), ContextOptions(strategy="buffer"), False),
        (ContextOptions(max_tokens=100), ContextOptions(last=3), False),
        (ContextOptions(max_tokens=100), ContextOptions(max_tokens=101), False),
    ],
)
async def test_a_message_over_the_budget_is_refused_and_not_stored(memory, own, asked, over):
    document = SessionDocument(context=own)
    await memory.store.sessions.create(Create(ref=ref(), document=document))
    await append(memory, "old")
    if over:
        with pytest.raises(ContextTooLarge, match="1 tokens over the budget of 100"):
            await memory.store.turns.begin(begin(asked, cost=101))
        assert await stored(memory) == 1
        assert isinstance(await memory.store.turns.begin(begin(asked, cost=100)), Begun)
        return
    assert isinstance(await memory.store.turns.begin(begin(asked, cost=101)), Begun)
    assert await stored(memory) == 2


async def test_another_users_session_is_not_found_whatever_the_message_costs(memory):
    document = SessionDocument(context=ContextOptions(max_tokens=100))
    await memory.store.sessions.create(Create(ref=ref(), document=document, user_id="ada"))
    command = msgspec.structs.replace(begin(ContextOptions(), cost=101), user_id="bob")
    with pytest.raises(SessionNotFound):
        await memory.store.turns.begin(command)


async def test_a_turn_is_shown_as_much_as_its_budget_needs(memory):
    for start in range(0, 300, 50):
        await append(memory, *(str(n) for n in range(start, start + 50)))
        await memory.flush()
    begun = await memory.store.turns.begin(begin(ContextOptions(max_tokens=2000)))
    assert isinstance(begun, Begun)
    contents = [message.content for message in begun.history.messages]
    assert len(contents) >= 200
    assert contents == [str(n) for n in range(300)][-len(contents) :]


def covering(ids, text: str = "They said something.") -> Summary:
    return Summary(text=text, from_id=ids[0], through_id=ids[-1], model="m")


async def summary(memory: Kept) -> Summary | None:
    return (await memory.store.transcripts.recent(ref(), Need(last=1))).summary


async def test_a_summary_lands_only_in_the_place_of_the_one_that_was_seen(memory):
    ids = await append(memory, *"abcdef")
    first, second, other = covering(ids[:2]), covering(ids[:4]), covering(ids[:5], "Another.")
    sessions = memory.store.sessions

    assert await sessions.summarise(ref(), None, first)
    assert await summary(memory) == first
    assert not await sessions.summarise(ref(), None, second)
    assert await sessions.summarise(ref(), ids[1], second)
    await memory.flush()
    assert not await sessions.summarise(ref(), ids[1], other)
    assert not await sessions.summarise(ref(), ids[3], first)
    assert await summary(memory) == second
    assert await stored(memory) == 6


async def test_a_summary_is_no_activity_and_is_in_the_history_of_a_turn(memory):
    ids = await append(memory, *"abc")
    before = await memory.store.sessions.get(ref())
    assert await memory.store.sessions.summarise(ref(), None, covering(ids[:2]))
    await memory.flush()
    after = await memory.store.sessions.get(ref())
    assert (after.active_id, after.message_count) == (before.active_id, 3)

    begun = await memory.store.turns.begin(begin(ContextOptions(strategy="summary")))
    assert isinstance(begun, Begun)
    assert begun.history.summary == covering(ids[:2])


@pytest.mark.parametrize("flushed", [False, True])
async def test_a_clear_takes_the_summary_along_and_the_one_that_comes_too_late(memory, flushed):
    ids = await append(memory, *"abc")
    assert await memory.store.sessions.summarise(ref(), None, covering(ids[:1]))
    if flushed:
        await memory.flush()
    await memory.store.transcripts.clear(ref())
    assert await summary(memory) is None
    assert not await memory.store.sessions.summarise(ref(), None, covering(ids))
    await memory.flush()
    assert await summary(memory) is None

    fresh = await append(memory, "d")
    assert await memory.store.sessions.summarise(ref(), None, covering(fresh, "New."))
    await memory.flush()
    assert await summary(memory) == covering(fresh, "New.")


async def test_a_deleted_session_has_no_summary_and_an_unknown_one_gets_none(memory):
    ids = await append(memory, "a")
    assert await memory.store.sessions.summarise(ref(), None, covering(ids))
    await memory.store.sessions.delete(ref())
    with pytest.raises(SessionNotFound):
        await memory.store.sessions.summarise(ref(), None, covering(ids))
    await memory.flush()
    await append(memory, "b")
    assert await summary(memory) is None
    with pytest.raises(SessionNotFound):
        await memory.store.sessions.summarise(ref("nobody"), None, covering(ids))


@pytest.mark.parametrize("gone", ["deleted", "erased"])
async def test_a_late_summary_of_a_session_that_is_gone_is_not_the_next_ones(memory, gone):
    command = Append(ref=ref(), bodies=(counted("secret"),), user_id="ada")
    ids = (await memory.store.transcripts.append(command)).ids
    await memory.flush()
    if gone == "deleted":
        await memory.store.sessions.delete(ref())
    else:
        work = asyncio.ensure_future(memory.store.erasure.erase("default", "ada"))
        while not work.done():
            await memory.flush()
            await asyncio.sleep(0.005)
        assert await work is not None
    await memory.flush()
    await append(memory, "new")
    assert not await memory.store.sessions.summarise(ref(), None, covering(ids, "Secret."))
    assert await summary(memory) is None


async def test_counts_come_back_with_the_messages(memory):
    await append(memory, "a")
    await memory.flush()
    [message] = await memory.store.transcripts.page(ref(), PageQuery(limit=1))
    assert msgspec.structs.asdict(message)["token_count"] == TOKENS


async def begun_with(memory: Kept, options: ContextOptions) -> list[object]:
    begun = await memory.store.turns.begin(begin(options))
    assert isinstance(begun, Begun)
    history = begun.history
    return [message.content for message in (*history.pinned, *history.messages)]


async def test_a_session_with_very_many_instructions_shows_the_newest_of_them(memory):
    await memory.store.sessions.create(Create(ref=ref()))
    for start in range(0, 1002, 334):
        await append(memory, *(f"rule {n}" for n in range(start, start + 334)), role="system")
    await append(memory, *(str(n) for n in range(60)))
    recent = await memory.store.transcripts.recent(ref(), Need(last=50))
    shown = [message.content for message in (*recent.pinned, *recent.messages)]
    assert shown == await begun_with(memory, ContextOptions(last=50))
    rules = [one for one in shown if str(one).startswith("rule")]
    assert rules == [f"rule {n}" for n in range(1002)][-len(rules) :]
    assert len(rules) >= 1000
    assert shown[len(rules) :] == [str(n) for n in range(10, 60)]
