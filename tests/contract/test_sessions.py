"""Sessions: what every store promises of their life."""

import asyncio
import time

import msgspec
import pytest

from service.domain.context import ContextOptions
from service.domain.errors import IdempotencyKeyReused, SessionExists, SessionNotFound
from service.domain.ids import id_time
from service.domain.sessions import SessionDocument
from service.ports import Append, Create, Once, PageQuery, SessionQuery
from tests.support.stores import Kept, ref, said

DOCUMENT = SessionDocument(
    metadata={"plan": "pro", "名": "值"},
    context=ContextOptions(strategy="window", last=7),
    ttl_seconds=600,
)


async def append(memory: Kept, *texts: str, session="s", user=None):
    command = Append(ref=ref(session), bodies=tuple(map(said, texts)), user_id=user)
    return await memory.store.transcripts.append(command)


async def next_millisecond() -> None:
    """Activity is ordered by milliseconds: events of different sessions must not share one."""
    now = time.time_ns() // 1_000_000
    while time.time_ns() // 1_000_000 <= now:  # noqa: ASYNC110  # It waits for the clock.
        await asyncio.sleep(0)


async def listed(memory: Kept, **query) -> list[str]:
    query.setdefault("tenant", "default")
    page = await memory.store.sessions.newest(SessionQuery(limit=50, **query))
    return [session.id for session in page.items]


async def test_a_made_session_is_as_it_was_made(memory):
    made = await memory.store.sessions.create(Create(ref=ref(), user_id="ada", document=DOCUMENT))
    assert not made.replayed
    await memory.flush()
    found = await memory.store.sessions.get(ref())

    assert (found.user_id, found.document) == ("ada", DOCUMENT)
    assert found.created_at == id_time(made.born_id)
    assert (found.message_count, found.last_id) == (0, None)


async def test_a_session_is_made_once(memory):
    await memory.store.sessions.create(Create(ref=ref(), user_id=None, document=SessionDocument()))
    with pytest.raises(SessionExists):
        await memory.store.sessions.create(
            Create(ref=ref(), user_id="eve", document=SessionDocument())
        )
    await memory.flush()
    with pytest.raises(SessionExists):
        await memory.store.sessions.create(
            Create(ref=ref(), user_id="eve", document=SessionDocument())
        )

    await append(memory, "a", session="t")
    with pytest.raises(SessionExists):
        await memory.store.sessions.create(
            Create(ref=ref("t"), user_id="eve", document=SessionDocument())
        )


async def test_a_repeated_key_finds_the_session_it_made(memory):
    once = Once(operation="create", key="k", fingerprint="f")
    command = Create(ref=ref(), user_id="ada", document=DOCUMENT, once=once)
    first = await memory.store.sessions.create(command)
    await memory.flush()
    again = await memory.store.sessions.create(command)
    assert (again.born_id, again.replayed) == (first.born_id, True)

    other = msgspec.structs.replace(once, fingerprint="g")
    with pytest.raises(IdempotencyKeyReused):
        await memory.store.sessions.create(msgspec.structs.replace(command, once=other))
    other = msgspec.structs.replace(once, key="l")
    with pytest.raises(SessionExists):
        await memory.store.sessions.create(msgspec.structs.replace(command, once=other))


async def test_an_append_makes_the_session(memory):
    with pytest.raises(SessionNotFound):
        await memory.store.sessions.get(ref())
    ids = (await append(memory, "a", "b", user="ada")).ids

    session = await memory.store.sessions.get(ref())
    assert (session.message_count, session.last_id, session.user_id) == (2, ids[-1], "ada")


async def test_counts_are_right_before_between_and_after_flushes(memory):
    for round_ in range(1, 6):
        ids = (await append(memory, *(str(n) for n in range(11)))).ids
        assert (await memory.store.sessions.get(ref())).message_count == 11 * round_
        if round_ % 2:
            await memory.flush()
        session = await memory.store.sessions.get(ref())
        assert (session.message_count, session.last_id) == (11 * round_, ids[-1])


async def test_documents_are_replaced_only_where_they_are_as_seen(memory):
    await memory.store.sessions.create(Create(ref=ref(), user_id=None, document=DOCUMENT))
    newer = SessionDocument(metadata={"plan": "free"})

    assert await memory.store.sessions.replace(ref(), DOCUMENT, newer)
    assert not await memory.store.sessions.replace(ref(), DOCUMENT, SessionDocument())
    await memory.flush()
    assert (await memory.store.sessions.get(ref())).document == newer
    with pytest.raises(SessionNotFound):
        await memory.store.sessions.replace(ref("nobody"), DOCUMENT, newer)


async def test_a_document_can_be_given_to_a_session_that_an_append_made(memory):
    await append(memory, "a")
    await memory.flush()

    assert await memory.store.sessions.replace(ref(), SessionDocument(), DOCUMENT)
    assert (await memory.store.sessions.get(ref())).document == DOCUMENT
    assert await memory.store.sessions.replace(ref(), DOCUMENT, SessionDocument())
    await memory.flush()
    assert (await memory.store.sessions.get(ref())).document == SessionDocument()


@pytest.mark.parametrize("flushed", [False, True])
async def test_deleted_is_gone_and_may_be_made_anew(memory, flushed):
    await memory.store.sessions.create(Create(ref=ref(), user_id="ada", document=DOCUMENT))
    await append(memory, "a")
    if flushed:
        await memory.flush()
    await memory.store.sessions.delete(ref())

    with pytest.raises(SessionNotFound):
        await memory.store.sessions.get(ref())
    with pytest.raises(SessionNotFound):
        await memory.store.transcripts.page(ref(), PageQuery(limit=10))
    with pytest.raises(SessionNotFound):
        await memory.store.sessions.delete(ref())
    assert await listed(memory) == []

    await append(memory, "b", user="eve")
    await memory.flush()
    session = await memory.store.sessions.get(ref())
    assert (session.user_id, session.document) == ("eve", SessionDocument())
    assert session.message_count == 1
    [message] = await memory.store.transcripts.page(ref(), PageQuery(limit=10))
    assert message.content == "b"


async def test_sessions_are_listed_by_newest_activity(memory):
    for name in ("a", "b", "c"):
        await append(memory, "x", session=name, user="ada")
        await next_millisecond()
    await memory.flush()
    await append(memory, "y", session="a")
    await next_millisecond()
    await append(memory, "z", session="d", user="eve")

    assert await listed(memory) == ["d", "a", "c", "b"]
    assert await listed(memory, user_id="ada") == ["a", "c", "b"]
    assert await listed(memory, tenant="other") == []


@pytest.mark.parametrize("flushed", [0, 5, 9])
async def test_pages_of_sessions_neither_skip_nor_repeat(memory, flushed):
    for n in range(9):
        await append(memory, "x", session=f"s{n}")
        await next_millisecond()
        if n + 1 == flushed:
            await memory.flush()

    found, before = [], None
    while True:
        query = SessionQuery(tenant="default", limit=4, before=before)
        page = await memory.store.sessions.newest(query)
        found += [session.id for session in page.items]
        before = page.next_before
        if before is None:
            break

    assert found == [f"s{n}" for n in reversed(range(9))]
