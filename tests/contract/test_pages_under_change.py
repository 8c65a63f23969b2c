"""Pages while others write: nothing that stood before is skipped, nothing comes twice."""

import asyncio
import random

import pytest

from service.core.background import ended
from service.ports import Append, PageQuery
from tests.support.stores import Kept, ref, said

BEFORE = 60
PAGES_READ = 5


async def write_on(memory: Kept, source: random.Random) -> None:
    """Append and flush for ever, in bursts that trim and fill the hot list."""
    number = 0
    while True:
        texts = [f"new{number + step}" for step in range(source.choice([1, 3, 25]))]
        number += len(texts)
        await memory.store.transcripts.append(
            Append(ref=ref(), bodies=tuple(said(text) for text in texts))
        )
        if source.random() < 0.5:
            await memory.flush()
        await asyncio.sleep(0)


async def read_through(memory: Kept, source: random.Random, *, descending: bool) -> list[str]:
    """All messages that a reader meets on the way to the end of the session as it was."""
    texts: list[str] = []
    cursor = None
    while True:
        query = PageQuery(
            limit=source.choice([1, 2, 7, 30]),
            descending=descending,
            before=cursor if descending else None,
            after=None if descending else cursor,
        )
        page = await memory.store.transcripts.page(ref(), query)
        texts += [str(message.content) for message in page]
        if len(page) < query.limit or (not descending and len(texts) > 4 * BEFORE):
            return texts
        cursor = page[-1].id


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("seed", range(2))
async def test_a_reader_beside_writers_skips_and_repeats_nothing(memory, seed, descending):
    source = random.Random(seed)
    old = [f"old{number}" for number in range(BEFORE)]
    await memory.store.transcripts.append(
        Append(ref=ref(), bodies=tuple(said(text) for text in old))
    )
    await memory.flush()
    writer = asyncio.create_task(write_on(memory, source))
    try:
        for _ in range(PAGES_READ):
            texts = await read_through(memory, source, descending=descending)
            in_order = texts[::-1] if descending else texts
            assert len(set(texts)) == len(texts)
            assert [text for text in in_order if text.startswith("old")] == old
            new = [int(text[3:]) for text in in_order if text.startswith("new")]
            assert new == list(range(len(new)))
    finally:
        await ended(writer)
