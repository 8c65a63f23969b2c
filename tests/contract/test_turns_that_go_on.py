"""Turns that go on with results of tools: what every store promises of them."""

import msgspec
import pytest

from service.domain.context import ContextOptions
from service.domain.errors import (
    ContextTooLarge,
    IdempotencyKeyReused,
    RequestRunning,
    SessionBusy,
    TurnNotFound,
    TurnNotWaiting,
)
from service.domain.ids import MessageId, TurnId
from service.domain.messages import MessageBody, Role, encode_body
from service.ports import (
    Append,
    Begin,
    Begun,
    Finish,
    Once,
    PageQuery,
    Replayed,
    Resumption,
    TurnRecord,
)
from tests.support.polling import eventually
from tests.support.stores import Kept, ref, said, showing

CALLS = [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
TURN = TurnId("turn-1")
KEYED = Once(operation="tool-results", key="k", fingerprint="r1")


def begin(text: str = "hi", *, token: str = "t1", turn: TurnId = TURN, once: Once | None = None):
    return Begin(
        ref=ref(),
        turn_id=turn,
        body=said(text),
        options=showing(10),
        user_id=None,
        once=once,
        lease_token=token,
    )


def results(
    calls_id: MessageId | None,
    *contents: str,
    token: str = "t2",
    once: Once | None = None,
    fingerprint: str = "r1",
    options: ContextOptions | None = None,
    cost: int = 0,
):
    bodies = (MessageBody(role="tool", content=text, tool_call_id="c1") for text in contents)
    return Begin(
        ref=ref(),
        turn_id=TURN,
        body=b"",
        resumes=Resumption(
            calls_id=calls_id,
            bodies=tuple(map(encode_body, bodies)),
            fingerprint=fingerprint,
            asked=b"asked:" + token.encode(),
        ),
        options=options or showing(10),
        cost=cost,
        user_id=None,
        once=once,
        lease_token=token,
    )


def end(text: str | None = None, *, token: str = "t1", once: Once | None = None, asked=b""):
    """With a text the answer is one; without it is calls, if the turn can go on."""
    body = MessageBody(role="assistant", content=text, tool_calls=None if text else CALLS)
    return Finish(
        ref=ref(),
        turn_id=TURN,
        lease_token=token,
        body=encode_body(body) if text or asked else None,
        result=b'{"of":"%b"}' % token.encode(),
        once=once,
        asked=asked,
        resumed=token != "t1",
    )


async def roles(memory: Kept) -> list[str]:
    messages = await memory.store.transcripts.page(ref(), PageQuery(limit=1000))
    return [message.role for message in messages]


async def append(memory: Kept, role: Role, text: str = "note"):
    command = Append(ref=ref(), bodies=(said(text, role),))
    return (await memory.store.transcripts.append(command)).ids[0]


async def found(memory: Kept) -> TurnRecord:
    record = await memory.store.turns.find(ref(), TURN, asked=True)
    assert record is not None
    return record


async def called(memory: Kept, *, once: Once | None = None) -> MessageId:
    """A turn that has made calls and waits; the id of the message with them."""
    begun = await memory.store.turns.begin(begin(once=once))
    assert isinstance(begun, Begun)
    finished = await memory.store.turns.finish(end(asked=b"asked:t1", once=once))
    assert finished.message_id is not None
    return finished.message_id


async def test_a_turn_goes_on_under_its_id_behind_its_calls(memory):
    await append(memory, "user", "before")
    calls_id = await called(memory)
    record = await found(memory)
    assert (record.state, record.message_id, record.asked) == ("ended", calls_id, b"asked:t1")

    begun = await memory.store.turns.begin(results(calls_id, "42", "43"))
    assert isinstance(begun, Begun)
    assert begun.turn_id == TURN
    assert begun.user_message_id == record.user_message_id
    assert [m.content for m in begun.history.messages] == ["before"]
    assert await roles(memory) == ["user", "user", "assistant", "tool", "tool"]
    record = await found(memory)
    assert (record.state, record.asked) == ("running", b"asked:t2")

    finished = await memory.store.turns.finish(end("done", token="t2"))
    assert finished.outcome == "stored"
    record = await found(memory)
    assert (record.state, record.result) == ("ended", b'{"of":"t2"}')
    assert record.message_id == finished.message_id
    assert await roles(memory) == ["user", "user", "assistant", "tool", "tool", "assistant"]


async def test_what_a_turn_goes_on_with_is_told_only_where_it_is_wanted(memory):
    await called(memory)
    record = await memory.store.turns.find(ref(), TURN)
    assert record is not None
    assert record.asked == b""


async def test_a_turn_may_call_again_and_go_on_again(memory):
    calls_id = await called(memory)
    await memory.store.turns.begin(results(calls_id, "1"))
    again = await memory.store.turns.finish(end(token="t2", asked=b"asked:again"))
    assert (await found(memory)).asked == b"asked:again"
    with pytest.raises(TurnNotWaiting):
        await memory.store.turns.begin(results(calls_id, "1", token="t3"))
    begun = await memory.store.turns.begin(results(again.message_id, "2", token="t3"))
    assert isinstance(begun, Begun)
    await memory.store.turns.finish(end("done", token="t3"))
    assert await roles(memory) == ["user", "assistant", "tool", "assistant", "tool", "assistant"]


async def test_calls_are_answered_once(memory):
    calls_id = await called(memory)
    await memory.store.turns.begin(results(calls_id, "42"))
    for calls in (calls_id, None):
        with pytest.raises(TurnNotWaiting):
            await memory.store.turns.begin(results(calls, "42", token="t3"))
    await memory.store.turns.finish(end("done", token="t2"))
    for calls in (calls_id, None):
        with pytest.raises(TurnNotWaiting):
            await memory.store.turns.begin(results(calls, "42", token="t3"))
    assert await roles(memory) == ["user", "assistant", "tool", "assistant"]


async def test_a_repeated_key_returns_the_answer_joins_or_runs_again(memory):
    calls_id = await called(memory)
    await memory.store.turns.begin(results(calls_id, "42", once=KEYED))
    with pytest.raises(RequestRunning) as running:
        await memory.store.turns.begin(results(None, "42", once=KEYED, token="t3"))
    assert running.value.turn_id == TURN
    await memory.store.turns.fail(end(token="t2", once=KEYED))

    begun = await memory.store.turns.begin(results(None, "42", once=KEYED, token="t3"))
    assert isinstance(begun, Begun)
    finished = await memory.store.turns.finish(end("done", token="t3", once=KEYED))
    replayed = await memory.store.turns.begin(results(None, "42", once=KEYED, token="t4"))
    assert replayed == Replayed(result=b'{"of":"t3"}', message_id=finished.message_id)
    assert await roles(memory) == ["user", "assistant", "tool", "assistant"]
    other = Once(operation="tool-results", key="k", fingerprint="other")
    with pytest.raises(IdempotencyKeyReused):
        await memory.store.turns.begin(results(None, "43", once=other, token="t5"))


async def test_the_first_calls_key_still_answers_with_the_calls(memory):
    once = Once(operation="chat", key="k", fingerprint="f")
    calls_id = await called(memory, once=once)
    await memory.store.turns.begin(results(calls_id, "42"))
    await memory.store.turns.finish(end("done", token="t2"))
    replayed = await memory.store.turns.begin(begin(token="t9", once=once))
    assert replayed == Replayed(result=b'{"of":"t1"}', message_id=calls_id)
    assert (await found(memory)).result == b'{"of":"t2"}'


@pytest.mark.parametrize("how", ["failed", "interrupted"])
async def test_the_same_results_run_a_turn_again_that_did_not_end(memory, how):
    calls_id = await called(memory)
    await memory.store.turns.begin(results(calls_id, "42"))
    if how == "failed":
        await memory.store.turns.fail(end(token="t2"))
    else:

        async def interrupted() -> bool:
            return (await found(memory)).state == "interrupted"

        await eventually(interrupted, within_seconds=5)
    with pytest.raises(TurnNotWaiting):
        await memory.store.turns.begin(results(calls_id, "43", token="t3", fingerprint="r2"))
    record = await found(memory)
    assert record.asked == b"asked:t2"

    begun = await memory.store.turns.begin(results(None, "42", token="t3"))
    assert isinstance(begun, Begun)
    assert begun.turn_id == TURN
    await memory.store.turns.finish(end("done", token="t3"))
    assert await roles(memory) == ["user", "assistant", "tool", "assistant"]


async def test_nothing_goes_on_without_calls(memory):
    with pytest.raises(TurnNotFound):
        await memory.store.turns.begin(results(None, "42"))
    await memory.store.turns.begin(begin())
    with pytest.raises(TurnNotWaiting):
        await memory.store.turns.begin(results(None, "42"))
    await memory.store.turns.finish(end("done"))
    with pytest.raises(TurnNotWaiting):
        await memory.store.turns.begin(results(None, "42"))
    assert await roles(memory) == ["user", "assistant"]


@pytest.mark.parametrize(
    ("role", "goes_on"),
    [("user", False), ("assistant", False), ("tool", False), ("system", True), ("developer", True)],
)
async def test_only_notes_may_come_between_calls_and_results(memory, role, goes_on):
    calls_id = await called(memory)
    await append(memory, role)
    if goes_on:
        assert isinstance(await memory.store.turns.begin(results(calls_id, "42")), Begun)
        return
    with pytest.raises(TurnNotWaiting):
        await memory.store.turns.begin(results(calls_id, "42"))
    assert await roles(memory) == ["user", "assistant", role]


async def test_a_running_turn_comes_first(memory):
    calls_id = await called(memory)
    await memory.store.turns.begin(begin("more", token="t5", turn=TurnId("turn-5")))
    with pytest.raises(SessionBusy):
        await memory.store.turns.begin(results(calls_id, "42"))


@pytest.mark.parametrize("forget", ["clear", "delete"])
async def test_what_was_forgotten_does_not_go_on(memory, forget):
    calls_id = await called(memory)
    if forget == "clear":
        await memory.store.transcripts.clear(ref())
        expected: type[Exception] = TurnNotWaiting
    else:
        await memory.store.sessions.delete(ref())
        expected = TurnNotFound
    with pytest.raises(expected):
        await memory.store.turns.begin(results(calls_id, "42"))


@pytest.mark.parametrize("ended", [True, False])
async def test_a_key_of_a_deleted_session_says_nothing_of_it(memory, ended):
    calls_id = await called(memory)
    await memory.store.turns.begin(results(calls_id, "42", once=KEYED))
    if ended:
        await memory.store.turns.finish(end("done", token="t2", once=KEYED))
    await memory.store.sessions.delete(ref())
    for _ in range(2):
        with pytest.raises(TurnNotFound):
            await memory.store.turns.begin(results(None, "42", once=KEYED, token="t3"))
        await memory.flush()
        await append(memory, "user", "anew")
    assert await roles(memory) == ["user", "user"]


async def test_results_come_before_those_that_wait(memory):
    turns = memory.store.turns
    await turns.begin(begin())
    waiting = begin("other", token="t5", turn=TurnId("turn-5"))
    with pytest.raises(SessionBusy):
        await turns.begin(msgspec.structs.replace(waiting, waits=True))
    finished = await turns.finish(end(asked=b"asked"))
    with pytest.raises(SessionBusy):
        await turns.begin(begin("a third", token="t6", turn=TurnId("turn-6")))
    begun = await turns.begin(results(finished.message_id, "42"))
    assert isinstance(begun, Begun)


async def test_any_key_of_the_same_results_runs_them_again(memory):
    other = Once(operation="tool-results", key="other", fingerprint="r1")
    calls_id = await called(memory)
    for number, once in enumerate((KEYED, other, KEYED, None)):
        token = f"t{2 + number}"
        begun = await memory.store.turns.begin(results(calls_id, "42", once=once, token=token))
        assert isinstance(begun, Begun)
        await memory.store.turns.fail(end(token=token, once=once))
    assert await roles(memory) == ["user", "assistant", "tool"]


async def test_results_over_the_budget_are_not_stored(memory):
    calls_id = await called(memory)
    options = ContextOptions(strategy="tokens", max_tokens=100)
    with pytest.raises(ContextTooLarge):
        await memory.store.turns.begin(results(calls_id, "42", options=options, cost=101))
    assert await roles(memory) == ["user", "assistant"]
    assert isinstance(await memory.store.turns.begin(results(calls_id, "42")), Begun)


async def test_a_turn_goes_on_in_a_session_that_is_longer_than_what_is_hot(memory):
    for number in range(30):
        await append(memory, "user", str(number))
    calls_id = await called(memory)
    await memory.flush()
    begun = await memory.store.turns.begin(results(calls_id, "42"))
    assert isinstance(begun, Begun)
    assert [m.content for m in begun.history.messages] == [str(n) for n in range(20, 30)]
    assert (await roles(memory))[-3:] == ["user", "assistant", "tool"]
