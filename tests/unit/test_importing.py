"""Importing without a store: lines out of bytes, ids and times, limits and their names."""

import asyncio
import itertools
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.adapters.tokens.vocabularies import Vocabularies
from service.core import importing as importing_module
from service.core.counting import Counting
from service.core.import_lines import split_lines
from service.core.importing import BATCH_LINES_MAX, EPOCH, Importing, ImportLimits
from service.domain.errors import ChatMemoryError, InvalidRequest, InvalidValue, TooLarge
from service.domain.ids import ZERO_ID, MessageId, id_milliseconds, message_id
from service.domain.messages import Message, decode_messages, with_id
from service.ports import Import, Imported, ImportedRow
from tests.support.stores import ref

NOW = 1_800_000_000_000
MINUTE = timedelta(minutes=1)


class Run:
    """An import into a list."""

    def __init__(self, above: MessageId) -> None:
        self.now_milliseconds = NOW
        self.latest_milliseconds = NOW - 1
        self.above = above
        self.done: Imported | None = None
        self.batches: list[Sequence[ImportedRow]] = []
        self.finished: Imported | None = None

    async def store(self, rows: Sequence[ImportedRow]) -> None:
        self.batches.append(rows)

    async def finish(self, imported: Imported, fingerprint: str) -> None:
        self.finished = imported

    @property
    def messages(self) -> list[Message]:
        return decode_messages([with_id(r.id, r.body) for rows in self.batches for r in rows])


class ListImports:
    def __init__(self, above: MessageId = ZERO_ID) -> None:
        self.run = Run(above)

    @asynccontextmanager
    async def open(self, command: Import) -> AsyncGenerator[Run]:
        yield self.run


async def pieces(*chunks: bytes) -> AsyncGenerator[bytes]:
    for chunk in chunks:
        yield chunk


def importing(imports: ListImports, **limits: Any) -> Importing:
    chosen = {"message_bytes_max": 1000, "line_bytes_max": 2000, "bytes_max": 100_000} | limits
    return Importing(imports, Counting(Vocabularies(), model="gpt-4o"), ImportLimits(**chosen))


async def imported(body: bytes, *, above: MessageId = ZERO_ID, **limits: Any) -> list[Message]:
    imports = ListImports(above)
    await importing(imports, **limits).stream(Import(ref=ref()), pieces(body))
    return imports.run.messages


def line(content: str = "x", **fields: Any) -> bytes:
    return msgspec.json.encode({"role": "user", "content": content} | fields) + b"\n"


async def cut(chunks: Sequence[bytes], limit: int) -> tuple[list[tuple[int, bytes]], str | None]:
    """The lines, and the line that was too long."""
    found: list[tuple[int, bytes]] = []
    try:
        async for one in split_lines(pieces(*chunks), line_bytes_max=limit):
            found += [one]
    except TooLarge as error:
        return found, error.errors[0].field
    return found, None


@given(
    body=st.lists(
        st.sampled_from([b"a", b"bc", b"\n", b"\r\n", b" ", b"\xef\xbb\xbf", b"\xc3"])
    ).map(b"".join),
    cuts=st.lists(st.integers(0, 60), max_size=8),
)
def test_any_chunking_gives_the_same_lines(body, cuts):
    places = sorted({0, len(body), *(place for place in cuts if place < len(body))})
    chunks = [body[a:b] for a, b in itertools.pairwise(places)]
    assert asyncio.run(cut(chunks, 5)) == asyncio.run(cut([body], 5))


async def test_lines_end_as_they_like_and_blank_ones_count_but_are_not_messages():
    body = b'\xef\xbb\xbf{"a":1}\r\n\r\n \n{"b":2}\n{"c":3}'
    assert await cut([body], 100) == ([(1, b'{"a":1}'), (4, b'{"b":2}'), (5, b'{"c":3}')], None)


async def test_a_line_that_does_not_end_is_refused_at_the_limit():
    read = 0

    async def endless() -> AsyncGenerator[bytes]:
        nonlocal read
        yield b"{}\n"
        while True:
            read += 100
            yield b"x" * 100

    with pytest.raises(TooLarge) as caught:
        _ = [one async for one in split_lines(endless(), line_bytes_max=1000)]
    assert caught.value.errors[0].field == "line 2"
    assert read == 1100


times = st.timedeltas(timedelta(0), timedelta(days=20_000)).map(lambda since: EPOCH + since)


@given(said_at=st.lists(st.none() | times, min_size=1, max_size=20))
def test_ids_increase_and_times_are_exact(said_at):
    body = b"".join(line(created_at=time) if time else line() for time in said_at)
    messages = asyncio.run(imported(body))

    ids = [message.id for message in messages]
    assert ids == sorted(set(ids))
    expected: datetime | None = None
    for given_time, message in zip(said_at, messages, strict=True):
        expected = given_time or expected
        if expected is not None:
            assert message.created_at == expected


async def test_an_id_has_the_time_of_its_message_where_the_order_allows_it():
    start = datetime(2020, 1, 1, tzinfo=UTC)
    said_at = [start, start + MINUTE, start, start + 2 * MINUTE]
    messages = await imported(b"".join(line(created_at=time) for time in said_at))
    seconds = [id_milliseconds(message.id) / 1000 - start.timestamp() for message in messages]
    assert seconds == [0, 60, 60, 120]
    assert [message.said_at for message in messages] == [None, None, start, None]


async def test_ids_are_above_what_was_cleared():
    above = message_id(NOW - 1000, 5, 7)
    [message] = await imported(line(created_at="2020-01-01T00:00:00Z"), above=above)
    assert message.id > above
    assert message.created_at == datetime(2020, 1, 1, tzinfo=UTC)


async def test_a_time_in_another_zone_is_the_same_moment():
    time = datetime(2020, 1, 1, 12, 0, 0, 123456, tzinfo=timezone(2 * 60 * MINUTE))
    [message] = await imported(line(created_at=time))
    assert message.created_at == time


async def test_fields_of_an_export_are_kept_or_passed_over():
    fields: dict[str, Any] = {
        "type": "message",
        "id": "i",
        "session_id": "other",
        "token_count": 99,
    }
    kept: dict[str, Any] = {
        "turn_id": "t",
        "status": "incomplete",
        "name": "n",
        "metadata": {"a": 1},
    }
    [message] = await imported(line(**fields, **kept))
    assert (message.turn_id, message.status, message.name) == ("t", "incomplete", "n")
    assert (message.metadata, message.id == "i") == ({"a": 1}, False)
    assert message.token_count not in {None, 99}


@pytest.mark.parametrize(
    ("bad", "error", "field"),
    [
        (b"{\n", InvalidRequest, "line 2"),
        (b'"text"\n', InvalidRequest, "line 2"),
        (b'{"content":"x"}\n', InvalidRequest, "line 2.role"),
        (line(role="king"), InvalidRequest, "line 2.role"),
        (line(unknown=1), InvalidRequest, "line 2.unknown"),
        (line(type="end"), InvalidRequest, "line 2.type"),
        (b'{"role":"user","content":"\xff"}\n', InvalidRequest, "line 2"),
        (b'{"role":"user","content":"\\ud800"}\n', InvalidRequest, "line 2"),
        (b"[" * 1900 + b"\n", InvalidRequest, "line 2"),
        (line(created_at="yesterday"), InvalidValue, "line 2.created_at"),
        (line(content=""), InvalidValue, "line 2.content"),
        (line(content="a\0b"), InvalidValue, "line 2.content"),
        (line(content="x" * 1001), InvalidValue, "line 2.content"),
        (line(turn_id=""), InvalidValue, "line 2.turn_id"),
        (line(created_at="2020-01-01T00:00:00"), InvalidValue, "line 2.created_at"),
        (line(created_at="1969-12-31T23:59:59Z"), InvalidValue, "line 2.created_at"),
        (line(created_at="2027-01-15T08:00:00.001Z"), InvalidValue, "line 2.created_at"),
        (line(content="x" * 3000), TooLarge, "line 2"),
    ],
)
async def test_an_error_names_line_and_field(bad, error, field):
    imports = ListImports()
    with pytest.raises(ChatMemoryError) as caught:
        await importing(imports).stream(Import(ref=ref()), pieces(line(), bad, line()))
    assert (type(caught.value), caught.value.errors[0].field) == (error, field)
    assert imports.run.finished is None


@pytest.mark.parametrize("body", [b"", b"\n\r\n  \n", b"\xef\xbb\xbf"])
async def test_a_body_without_messages_is_refused(body):
    with pytest.raises(InvalidValue):
        await imported(body)


async def test_a_body_over_the_limit_is_refused():
    with pytest.raises(TooLarge) as caught:
        await imported(line() * 100, bytes_max=500)
    assert caught.value.errors[0].field == "body"


async def test_a_body_that_stalls_is_refused(monkeypatch):
    monkeypatch.setattr(importing_module, "STALL_SECONDS", 0.05)

    async def stalled() -> AsyncGenerator[bytes]:
        yield line()
        await asyncio.Event().wait()

    imports = ListImports()
    with pytest.raises(InvalidRequest):
        await importing(imports).stream(Import(ref=ref()), stalled())
    assert imports.run.finished is None


async def test_messages_are_stored_in_batches():
    imports = ListImports()
    body = line() * (BATCH_LINES_MAX + 1)
    await importing(imports).stream(Import(ref=ref()), pieces(body))
    assert [len(rows) for rows in imports.run.batches] == [BATCH_LINES_MAX, 1]
    assert imports.run.finished is not None
    assert imports.run.finished.imported == BATCH_LINES_MAX + 1
