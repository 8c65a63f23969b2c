"""A page of a search is of one moment, whatever is archived or forgotten between its statements."""

from typing import Any

import pytest

from service.adapters.postgres import search
from service.domain.words import parse_query
from service.ports import Append, SearchQuery
from tests.support.stores import kept, ref, said


@pytest.mark.parametrize("what", ["append", "clear"])
async def test_a_page_neither_repeats_nor_skips(hybrid_settings, monkeypatch, what):
    monkeypatch.setattr(search, "WALK_ROWS", 20)
    async with kept(hybrid_settings) as store:
        transcripts = store.store.transcripts

        async def say(session: str, text: str, count: int) -> None:
            command = Append(ref=ref(session), bodies=(said(text),) * count)
            await transcripts.append(command)
            await store.flush()

        await say("s", "needle", 60)
        await say("t", "hay", 10)
        moved: list[bool] = []

        class Moving:
            """A connection beside whose second statement the archive moves on."""

            def __init__(self, connection: Any) -> None:
                self.fetch = connection.fetch
                self._fetchval = connection.fetchval

            async def fetchval(self, *arguments: Any) -> Any:
                if not moved:
                    moved.append(True)
                    if what == "append":
                        await say("u", "hay", 5)
                    else:
                        await transcripts.clear(ref("t"))
                        await store.flush()
                return await self._fetchval(*arguments)

        rows: Any = search.find_rows

        async def find_rows(connection: Any, query: SearchQuery) -> Any:
            return await rows(Moving(connection), query)

        monkeypatch.setattr(search, "find_rows", find_rows)
        found: list[str] = []
        query = SearchQuery(tenant="default", limit=40, words=parse_query("needle", "q"))
        searching = store.store.search
        assert searching is not None
        first = await searching.find(query)
        found += (one.message.id for one in first)
        before = SearchQuery(
            tenant="default", limit=40, words=query.words, before=first[-1].message.id
        )
        found += [one.message.id for one in await searching.find(before)]
        assert moved
        assert len(found) == len(set(found)) == 60
