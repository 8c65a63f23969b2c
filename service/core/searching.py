"""Searching: messages across the sessions of a tenant."""

from collections.abc import Sequence
from typing import Final

import msgspec

from service.core.pacing import Pace
from service.core.recall import check_limit
from service.domain.errors import InvalidValue
from service.domain.ids import MessageId, check_id
from service.domain.words import has_runs, searched_text
from service.ports import FoundMessage, Search, SearchQuery

ROUNDS_MAX: Final = 20
"""Reads for one page where most of what has the pairs of a word has not the word."""
CHARACTERS_PER_STEP: Final = 20_000
"""Of texts that are looked through before others get their turn."""


class SearchPage(msgspec.Struct, frozen=True, kw_only=True):
    """``next_cursor`` leads to the older ones; a page before it may be short."""

    items: tuple[FoundMessage, ...]
    next_cursor: MessageId | None
    archived_through: MessageId | None
    """What was accepted up to it was looked through; None where nobody knows."""


class Searching:
    """Looks through the archive."""

    def __init__(self, search: Search | None) -> None:
        self._search = search

    async def find(self, query: SearchQuery) -> SearchPage:
        """Raises InvalidValue, also where the store has no archive."""
        _check(query)
        if self._search is None:
            raise InvalidValue.of("messages", "this store has no archive to search")
        # Asked first: what is archived meanwhile is found as well.
        through = await self._search.archived_through()
        items: list[FoundMessage] = []
        before, more = query.before, True
        for _ in range(ROUNDS_MAX):
            # One more than a page shows tells whether another page follows.
            wanted = query.limit + 1 - len(items)
            round_ = msgspec.structs.replace(query, before=before, limit=wanted)
            found = await self._search.find(round_)
            items += await _those_found(query, found)
            more = len(found) == wanted
            if found:
                before = found[-1].message.id
            if not more or len(items) > query.limit:
                break
        shown = tuple(items[: query.limit])
        return SearchPage(
            items=shown,
            next_cursor=_next(shown, before, more=more, full=len(items) > query.limit),
            archived_through=through,
        )


def _next(
    shown: tuple[FoundMessage, ...], before: MessageId | None, *, more: bool, full: bool
) -> MessageId | None:
    if full:
        return shown[-1].message.id
    return before if more else None


def _check(query: SearchQuery) -> None:
    check_limit(query.limit)
    if query.user_id is not None:
        check_id(query.user_id, "user_id")
    if query.session_id is not None:
        check_id(query.session_id, "session_id")


async def _those_found(query: SearchQuery, messages: Sequence[FoundMessage]) -> list[FoundMessage]:
    """Those that have what only their text can tell."""
    if query.words is None or not query.words.runs:
        return list(messages)
    pace = Pace(CHARACTERS_PER_STEP)
    found: list[FoundMessage] = []
    for one in messages:
        text = searched_text(one.message.content)
        if has_runs(query.words, text):
            found.append(one)
        await pace.spent(len(text))
    return found
