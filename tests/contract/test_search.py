"""Search: what every store that can be searched promises."""

import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.core.searching import Searching
from service.domain.errors import InvalidValue
from service.domain.ids import TurnId
from service.domain.messages import MessageBody, Role, encode_body
from service.domain.words import parse_query
from service.ports import Append, Begin, Begun, Finish, SearchQuery
from tests.support.polling import eventually
from tests.support.stores import Kept, ref, said

over_archives = pytest.mark.parametrize(
    "store_settings", ["memory", "postgres", "hybrid"], indirect=True
)


@pytest.fixture
def searched(memory: Kept) -> Kept:
    return memory


async def append(
    kept: Kept, *texts: str, session="s", tenant="default", user=None, role: Role = "user"
):
    bodies = tuple(said(text, role) for text in texts)
    command = Append(ref=ref(session, tenant), bodies=bodies, user_id=user)
    return (await kept.store.transcripts.append(command)).ids


async def until_later() -> None:
    """Another millisecond, so that the ids of two sessions are in order."""
    start = time.time_ns() // 1_000_000
    await eventually(lambda: time.time_ns() // 1_000_000 > start + 1, within_seconds=1)


async def page(kept: Kept, q: str | None = None, *, limit=50, tenant="default", **fields):
    words = None if q is None else parse_query(q, "q")
    query = SearchQuery(tenant=tenant, limit=limit, words=words, **fields)
    return await Searching(kept.store.search).find(query)


async def found(kept: Kept, q: str | None = None, **fields) -> list[object]:
    await kept.flush()
    return [one.message.content for one in (await page(kept, q, **fields)).items]


@pytest.mark.parametrize("store_settings", ["redis"], indirect=True)
async def test_a_store_without_an_archive_says_so(memory):
    with pytest.raises(InvalidValue, match="no archive"):
        await page(memory, "word")


@over_archives
async def test_messages_are_found_across_sessions_newest_first(searched):
    first = await append(searched, "red apple", "green apple", session="a")
    second = await append(searched, "red cherry", session="b")
    third = await append(searched, "blue", session="a")

    # Ids of one session ascend; those of two sessions within a millisecond are in any order.
    await searched.flush()
    ids = [one.message.id for one in (await page(searched)).items]
    assert ids == sorted([*first, *second, *third], reverse=True)
    assert sorted(map(str, await found(searched, "RED"))) == ["red apple", "red cherry"]
    assert await found(searched, "apple red") == ["red apple"]
    assert await found(searched, "appl") == []
    items = (await page(searched, "cherry")).items
    assert [one.session_id for one in items] == ["b"]


@over_archives
async def test_filters_combine(searched):
    first = await append(searched, "one two", session="a", user="ada")
    await until_later()
    await append(searched, "two three", session="b", user="eve", role="assistant")
    await until_later()
    last = await append(searched, "two four", session="c", user="ada", role="assistant")

    assert await found(searched, user_id="ada") == ["two four", "one two"]
    assert await found(searched, "two", user_id="ada", role="assistant") == ["two four"]
    assert await found(searched, session_id="b") == ["two three"]
    assert await found(searched, "one", session_id="b") == []
    assert await found(searched, role="user") == ["one two"]
    assert await found(searched, after=first[0], before=last[0]) == ["two three"]
    assert await found(searched, user_id="nobody") == []
    assert await found(searched, session_id="b", user_id="ada") == []


@over_archives
async def test_tenants_do_not_find_one_another(searched):
    await append(searched, "secret", tenant="a")
    await append(searched, "secret", tenant="b")
    items = await found(searched, "secret", tenant="a")
    assert len(items) == 1
    assert await found(searched, "secret", tenant="c") == []


@over_archives
@pytest.mark.parametrize("q", ["京", "都", "東京", "東京都", "東京都庁"])
async def test_words_of_one_to_four_characters_are_found_where_there_are_no_spaces(searched, q):
    await append(searched, "東京都庁は新宿にあります", "京都と東京", "大阪")
    wanted = [text for text in ["京都と東京", "東京都庁は新宿にあります"] if q in text]
    assert await found(searched, q) == wanted


@over_archives
async def test_what_only_has_the_pairs_of_a_word_is_passed_over_and_pages_stay_full(searched):
    for number in range(10):
        await append(searched, "東京と京都", f"東京都 {number}")
    await searched.flush()
    seen: list[object] = []
    cursor = None
    while True:
        got = await page(searched, "東京都", limit=3, before=cursor)
        seen += (one.message.content for one in got.items)
        cursor = got.next_cursor
        if cursor is None:
            break
        assert len(got.items) == 3
    assert seen == [f"東京都 {number}" for number in range(9, -1, -1)]


@over_archives
async def test_pages_neither_skip_nor_repeat(searched):
    ids: list[str] = []
    for start in range(0, 40, 8):
        texts = (f"word {number}" for number in range(start, start + 8))
        ids += await append(searched, *texts, session=f"s{start % 3}")
    await searched.flush()
    seen: list[object] = []
    cursor = None
    while True:
        got = await page(searched, "word", limit=7, before=cursor)
        seen += (one.message.id for one in got.items)
        cursor = got.next_cursor
        if cursor is None:
            break
    assert seen == sorted(ids, reverse=True)


@over_archives
async def test_what_was_said_before_a_session_had_an_owner_is_the_owners(searched):
    await append(searched, "early")
    await searched.flush()
    await append(searched, "late", user="ada")
    assert await found(searched, user_id="ada") == ["late", "early"]


@over_archives
async def test_a_turn_is_found_by_its_user(searched):
    await append(searched, "before")
    await searched.flush()
    begin = Begin(
        ref=ref(),
        turn_id=TurnId("t"),
        body=said("question"),
        user_id="ada",
        once=None,
        lease_token="t",
    )
    assert isinstance(await searched.store.turns.begin(begin), Begun)
    answer = said("answer", "assistant")
    finish = Finish(
        ref=ref(), turn_id=begin.turn_id, lease_token="t", body=answer, result=b"{}", once=None
    )
    await searched.store.turns.finish(finish)
    assert await found(searched, user_id="ada") == ["answer", "question", "before"]


@over_archives
@pytest.mark.parametrize("forget", ["clear", "delete"])
async def test_what_was_forgotten_is_not_found(searched, forget):
    await append(searched, "word one")
    await searched.flush()
    if forget == "clear":
        await searched.store.transcripts.clear(ref())
    else:
        await searched.store.sessions.delete(ref())
    await append(searched, "word two")
    assert await found(searched, "word") == ["word two"]


@over_archives
async def test_the_answer_says_how_much_was_looked_through(searched):
    [first] = await append(searched, "word")
    before = (await page(searched, "word")).archived_through
    assert before is not None
    if searched.name == "hybrid":
        assert before < first
    await searched.flush()
    [later] = await append(searched, "word")
    got = await page(searched, "word")
    assert got.archived_through is not None
    if searched.name == "hybrid":
        assert first < got.archived_through < later


@over_archives
async def test_parts_are_searched_and_tool_calls_are_not(searched):
    parts = [{"type": "text", "text": "needle"}, {"type": "image_url", "image_url": {"url": "x"}}]
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "haystack"}}]
    bodies = (
        encode_body(MessageBody(role="user", content=parts)),
        encode_body(MessageBody(role="assistant", tool_calls=calls, metadata={"k": "haystack"})),
    )
    await searched.store.transcripts.append(Append(ref=ref(), bodies=bodies))
    assert await found(searched, "needle") == [parts]
    assert await found(searched, "haystack") == []
    assert await found(searched, "url") == []


LARGEST = [
    "".join(chr(0x4E00 + n % 20_000) + chr(0x20000 + n % 40_000) for n in range(120_000)),
    " ".join(f"{n:x}" * 12 for n in range(40_000)),
    " ".join(chr(0x1D7E0) * 40 + str(n) for n in range(3000)),
    "\U0001f989" * 60_000,
]


@over_archives
@pytest.mark.parametrize("text", LARGEST, ids=["pairs", "words", "wide", "none"])
async def test_the_largest_messages_are_archived_and_found_by_their_beginning(searched, text):
    await append(searched, f"needle {text}")
    assert len(await found(searched, "needle")) == 1


@over_archives
@settings(
    max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(texts=st.lists(st.text(st.characters(exclude_characters="\x00", codec="utf-8")), min_size=1))
async def test_any_text_can_be_indexed(searched, texts):
    bodies = tuple(
        encode_body(MessageBody(role="tool", content=text, tool_call_id="x")) for text in texts
    )
    await searched.store.transcripts.append(Append(ref=ref("any"), bodies=bodies))
    await searched.flush()
    assert (await page(searched, session_id="any", limit=1)).items[0].message.content == texts[-1]
