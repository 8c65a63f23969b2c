"""Transcripts: what every store promises of a session's messages."""

import asyncio

import msgspec
import pytest

from service.domain.context import Need
from service.domain.errors import (
    IdempotencyKeyReused,
    InvalidValue,
    PreconditionFailed,
    SessionNotFound,
)
from service.domain.messages import Content, MessageBody, Role, encode_body
from service.domain.sessions import SessionDocument
from service.ports import Append, Create, Once, PageQuery
from tests.support.stores import Kept, recall_of, ref, said


async def append(memory: Kept, *texts: str, session="s", user=None, once=None, role: Role = "user"):
    bodies = tuple(said(text, role) for text in texts)
    command = Append(ref=ref(session), bodies=bodies, user_id=user, once=once)
    return await memory.store.transcripts.append(command)


async def contents(memory: Kept, session="s", **query) -> list[Content]:
    query.setdefault("limit", 1000)
    messages = await memory.store.transcripts.page(ref(session), PageQuery(**query))
    return [message.content for message in messages]


async def test_messages_come_back_in_the_order_of_acceptance(memory):
    await append(memory, "a", "b")
    await append(memory, "c")

    assert await contents(memory) == ["a", "b", "c"]
    assert await contents(memory, descending=True) == ["c", "b", "a"]


async def test_ids_are_unique_and_ascend(memory):
    first = await append(memory, *(str(n) for n in range(50)))
    second = await append(memory, "x")

    ids = [*first.ids, *second.ids]
    assert len(set(ids)) == 51
    assert ids == sorted(ids)


async def test_what_was_accepted_is_read_the_same_flushed_or_not(memory):
    await append(memory, "a", "b")
    before = await memory.store.transcripts.page(ref(), PageQuery(limit=10))
    await memory.flush()
    after = await memory.store.transcripts.page(ref(), PageQuery(limit=10))

    assert before == after


async def test_fields_come_back_as_given(memory):
    body = MessageBody(
        role="assistant",
        content=[{"type": "text", "text": "你好 🦉 مرحبا \\u0000 \u2028"}],
        name="ada",
        tool_calls=[{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        metadata={"deep": [1, 2.5, None, {"x": True}]},
    )
    command = Append(ref=ref(), bodies=(encode_body(body),))
    await memory.store.transcripts.append(command)
    await memory.flush()

    [message] = await memory.store.transcripts.page(ref(), PageQuery(limit=10))
    assert {
        name: getattr(message, name) for name in body.__struct_fields__
    } == msgspec.structs.asdict(body)


@pytest.mark.parametrize(
    "session_id",
    [
        "a:b",
        "a%3Ab",
        "{cm:00}",
        "a/b",
        "..",
        " ",
        "ключ",
        "🦉",
        "'; DROP TABLE messages; --",
        "x" * 255,
    ],
)
async def test_any_session_id_names_its_own_session(memory, session_id):
    await append(memory, "mine", session=session_id)
    await append(memory, "other", session=session_id.replace(":", "%3A") + "x")
    await memory.flush()

    assert await contents(memory, session_id) == ["mine"]


async def test_tenants_do_not_see_one_another(memory):
    for tenant in ("a", "a:s", "default"):
        command = Append(ref=ref("s", tenant), bodies=(said(tenant),))
        await memory.store.transcripts.append(command)
    await memory.flush()

    for tenant in ("a", "a:s", "default"):
        messages = await memory.store.transcripts.page(ref("s", tenant), PageQuery(limit=10))
        assert [message.content for message in messages] == [tenant]


async def test_an_unknown_session_is_not_found(memory):
    with pytest.raises(SessionNotFound):
        await contents(memory, "nobody")
    with pytest.raises(SessionNotFound):
        await memory.store.transcripts.clear(ref("nobody"))
    assert not (await memory.store.transcripts.recent(ref("nobody"), Need(last=5))).exists


@pytest.mark.parametrize("descending", [False, True])
async def test_pages_neither_skip_nor_repeat(memory, descending):
    wanted = [str(n) for n in range(67)]
    await append(memory, *wanted[:30])
    await memory.flush()
    await append(memory, *wanted[30:50])
    await memory.flush()
    await append(memory, *wanted[50:])

    found, cursor = [], None
    while True:
        query = PageQuery(
            limit=7,
            descending=descending,
            after=None if descending else cursor,
            before=cursor if descending else None,
        )
        page = await memory.store.transcripts.page(ref(), query)
        found += [message.content for message in page]
        if len(page) < 7:
            break
        cursor = page[-1].id

    assert found == (wanted[::-1] if descending else wanted)


async def test_a_page_lies_between_its_exclusive_bounds(memory):
    ids = (await append(memory, *(str(n) for n in range(40)))).ids
    await memory.flush()
    ids += (await append(memory, *(str(n) for n in range(40, 60)))).ids

    for low, high in ((3, 9), (15, 45), (50, 58)):
        expected = [str(n) for n in range(low + 1, high)]
        assert await contents(memory, after=ids[low], before=ids[high]) == expected
        assert (
            await contents(memory, after=ids[low], before=ids[high], descending=True)
            == expected[::-1]
        )


async def test_recent_are_the_newest_in_order(memory):
    await append(memory, *(str(n) for n in range(60)))
    await memory.flush()
    await append(memory, "60")

    recent = await memory.store.transcripts.recent(ref(), Need(last=3))
    assert [message.content for message in recent.messages] == ["58", "59", "60"]
    everything = await memory.store.transcripts.recent(ref(), Need(last=None))
    assert len(everything.messages) == 61


async def test_system_messages_are_kept_apart_from_the_newest(memory):
    await append(memory, "be kind", role="system")
    await append(memory, *(str(n) for n in range(40)))
    await append(memory, "be brief", role="developer")
    await append(memory, *(str(n) for n in range(40, 80)))
    await memory.flush()
    await append(memory, "80")

    recent = await memory.store.transcripts.recent(ref(), Need(last=2))
    assert [message.content for message in recent.pinned] == ["be kind", "be brief"]
    assert [message.content for message in recent.messages] == ["79", "80"]


async def test_a_window_counts_spoken_messages_and_keeps_system_ones_between_them(memory):
    for n in range(10):
        await append(memory, f"rule {n}", role="system")
        await append(memory, str(n))
    await memory.flush()

    recent = await memory.store.transcripts.recent(ref(), Need(last=3))
    shown = [message.content for message in recent.messages]
    assert [text for text in shown if text.isdigit()] == ["7", "8", "9"]
    everything = [*recent.pinned, *recent.messages]
    assert [m.content for m in everything if m.role == "system"] == [f"rule {n}" for n in range(10)]
    assert [m.id for m in everything] == sorted(m.id for m in everything)


async def test_a_session_belongs_to_its_first_user(memory):
    await append(memory, "a", user="ada")
    await memory.flush()
    await append(memory, "b")

    with pytest.raises(SessionNotFound):
        await append(memory, "c", user="eve")
    assert await contents(memory) == ["a", "b"]
    assert (await memory.store.sessions.get(ref())).user_id == "ada"


async def test_a_session_without_a_user_gets_the_first_that_is_named(memory):
    await append(memory, "a")
    await memory.flush()
    await append(memory, "b", user="ada")
    await memory.flush()

    assert (await memory.store.sessions.get(ref())).user_id == "ada"
    with pytest.raises(SessionNotFound):
        await append(memory, "c", user="eve")


async def test_a_repeated_key_is_one_append(memory):
    once = Once(operation="append", key="k:1", fingerprint="f")
    first = await append(memory, "a", once=once)
    await memory.flush()
    second = await append(memory, "a", once=once)

    assert second.ids == first.ids
    assert (first.replayed, second.replayed) == (False, True)
    assert await contents(memory) == ["a"]


async def test_a_key_of_another_body_or_session_or_operation_is_another(memory):
    once = Once(operation="append", key="k", fingerprint="f")
    await append(memory, "a", once=once)

    with pytest.raises(IdempotencyKeyReused):
        await append(memory, "b", once=msgspec.structs.replace(once, fingerprint="g"))
    await append(memory, "c", once=once, session="t")
    await append(memory, "d", once=msgspec.structs.replace(once, operation="other"))
    assert await contents(memory) == ["a", "d"]
    assert await contents(memory, "t") == ["c"]


async def test_cleared_is_gone_and_stays_gone(memory):
    await append(memory, "a", user="ada")
    await memory.flush()
    await append(memory, "b")
    await memory.store.transcripts.clear(ref())
    assert await contents(memory) == []
    await append(memory, "c")
    assert await contents(memory) == ["c"]
    await memory.flush()

    assert await contents(memory) == ["c"]
    assert await contents(memory, descending=True) == ["c"]
    session = await memory.store.sessions.get(ref())
    assert (session.message_count, session.user_id) == (1, "ada")


async def test_racing_appends_are_all_there_in_one_order(memory):
    results = await asyncio.gather(*(append(memory, f"{n}a", f"{n}b") for n in range(30)))
    await memory.flush()

    ids = [identity for result in results for identity in result.ids]
    messages = await memory.store.transcripts.page(ref(), PageQuery(limit=1000))
    assert [message.id for message in messages] == sorted(ids)
    for result in results:
        place = [message.id for message in messages].index(result.ids[0])
        assert messages[place + 1].id == result.ids[1]


async def test_an_empty_session_has_an_empty_page(memory):
    await memory.store.sessions.create(Create(ref=ref(), user_id=None, document=SessionDocument()))

    assert await contents(memory) == []
    assert (await memory.store.transcripts.recent(ref(), Need(last=5))).exists


async def test_an_append_may_ask_for_the_last_message(memory):
    first = await append_after(memory, None, "a")
    with pytest.raises(PreconditionFailed) as caught:
        await append_after(memory, None, "x")
    assert caught.value.last_id == first
    await memory.flush()
    second = await append_after(memory, first, "b")
    with pytest.raises(PreconditionFailed) as caught:
        await append_after(memory, first, "x")
    assert caught.value.last_id == second

    await memory.store.transcripts.clear(ref())
    with pytest.raises(PreconditionFailed) as caught:
        await append_after(memory, second, "x")
    assert caught.value.last_id is None
    await append_after(memory, None, "c")
    assert await contents(memory) == ["c"]


async def test_of_racing_appends_after_one_message_one_is_accepted(memory):
    first = await append_after(memory, None, "a")
    outcomes = await asyncio.gather(
        *(append_after(memory, first, str(n)) for n in range(8)), return_exceptions=True
    )
    assert sum(isinstance(outcome, PreconditionFailed) for outcome in outcomes) == 7
    assert len(await contents(memory)) == 2


async def append_after(memory: Kept, last_id, text: str):
    command = Append(ref=ref(), bodies=(said(text),), if_last_id=last_id)
    return (await memory.store.transcripts.append(command)).ids[-1]


async def test_pages_can_be_of_one_role(memory):
    for n in range(20):
        await append(memory, f"q{n}")
        await append(memory, f"a{n}", role="assistant")
        if n == 12:
            await memory.flush()
    wanted = [f"a{n}" for n in range(20)]

    assert await contents(memory, role="assistant") == wanted
    assert await contents(memory, role="assistant", descending=True, limit=3) == wanted[:-4:-1]
    assert await contents(memory, role="assistant", descending=True, limit=15) == wanted[:4:-1]
    assert await contents(memory, role="tool") == []


async def test_the_archive_alone_can_be_asked_where_there_is_one(memory):
    await append(memory, "a", "b")
    await memory.flush()
    await append(memory, "c")
    if memory.name in {"memory", "redis"}:
        with pytest.raises(InvalidValue, match="no archive"):
            await contents(memory, archive_only=True)
        with pytest.raises(InvalidValue, match="no archive"):
            await memory.store.transcripts.recent(ref(), Need(last=5), archive_only=True)
        return
    archived = {"hybrid": ["a", "b"], "postgres": ["a", "b", "c"]}[memory.name]
    assert await contents(memory, archive_only=True) == archived
    recent = await memory.store.transcripts.recent(ref(), Need(last=5), archive_only=True)
    assert [message.content for message in recent.messages] == archived
    with pytest.raises(SessionNotFound):
        await contents(memory, "nobody", archive_only=True)


async def test_an_empty_range_of_an_unknown_session_is_of_an_unknown_session(memory):
    [one] = (await append(memory, "a")).ids
    recall = recall_of(memory.store)
    query = PageQuery(limit=5, before=one, after=one)
    assert (await recall.page(ref(), query)).items == ()
    await memory.flush()
    assert (await recall.page(ref(), query)).items == ()
    with pytest.raises(SessionNotFound):
        await recall.page(ref("nobody"), query)
