"""Which of PostgreSQL's errors are of the content, and how a refused run is carried."""

from collections.abc import Sequence
from typing import Any

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.adapters.postgres.door import refusal_of
from service.bootstrap.ambient import SystemClock
from service.core.carrying import Carrier
from service.domain.errors import ArchiveRefused
from service.domain.ids import message_id
from service.domain.journal import Acknowledgement, Batch, Entry, Refused, Unreadable, Written
from service.domain.sessions import SessionRef
from tests.support.stores import Recorder


def error_of(state: str) -> asyncpg.PostgresError:
    return asyncpg.PostgresError.new({"C": state, "M": "something that quotes values"})


@pytest.mark.parametrize(
    "state", ["22000", "22021", "22P02", "22P05", "23502", "23514", "54000", "54001", "P0001"]
)
def test_what_is_of_the_content_is_a_refusal(state):
    assert refusal_of(error_of(state)) == state


@pytest.mark.parametrize(
    "state",
    [
        *("08000", "08006", "25006", "28000", "3D000", "40001", "40P01", "42501", "42601", "42703"),
        *("42P01", "53000", "53100", "53200", "53300", "55P03", "55006", "57014", "57P01", "57P02"),
        *("57P03", "58030", "P0002", "XX000", "XX001", "23505", "0A000", ""),
    ],
)
def test_nothing_else_is_one(state):
    assert refusal_of(error_of(state)) is None


@pytest.mark.parametrize(
    "error",
    [
        *(TimeoutError(), OSError(), ConnectionResetError(), asyncpg.InterfaceError("closed")),
        asyncpg.InternalClientError("got a result for an unknown protocol state"),
    ],
)
def test_what_the_connection_meets_is_none(error):
    assert refusal_of(error) is None


class Shard:
    """A journal, an archive and dead letters of one shard, with their guarantees."""

    def __init__(self, poisons: set[int]) -> None:
        self.poisons = poisons
        self.journal: list[Entry] = []
        self.archived: list[Entry] = []
        self.buried: list[Entry] = []
        self.writes = 0

    async def write(self, batch: Batch) -> Written:
        self.writes += 1
        if any(int(entry.position) in self.poisons for entry in batch.entries):
            raise ArchiveRefused("22000")
        self.archived += (entry for entry in batch.entries if entry not in self.archived)
        return Written(rows=len(batch.entries), duplicates=0)

    async def acknowledge(self, shard: int, acknowledgement: Acknowledgement) -> bool:
        count = len(acknowledgement.entries)
        assert tuple(self.journal[:count]) == acknowledgement.entries
        del self.journal[:count]
        return True

    async def bury(self, shard: int, entry: Entry | Unreadable, reason: str) -> Refused:
        assert self.journal[0] == entry
        self.buried.append(self.journal.pop(0))
        return "buried"


def entry_at(place: int) -> Entry:
    return Entry(
        position=str(place),
        kind="message",
        ref=SessionRef("default", "s"),
        id=message_id(1, place, 0),
        user_id=None,
        role="user",
        body=b"{}",
    )


@given(count=st.integers(1, 200), poisons=st.sets(st.integers(0, 199), max_size=12))
async def test_a_run_is_carried_in_order_and_in_few_writes(count, poisons):
    poisons = {place for place in poisons if place < count}
    # It has of the ports what a carrier uses.
    shard: Any = Shard(poisons)
    shard.journal = [entry_at(place) for place in range(count)]
    carrier = Carrier(shard, shard, shard, clock=SystemClock(), observer=Recorder())
    assert await carrier.carry(0, list(shard.journal))

    assert shard.journal == []
    assert places(shard.buried) == sorted(poisons)
    assert places(shard.archived) == [n for n in range(count) if n not in poisons]
    assert shard.writes <= 1 + 2 * len(poisons) * count.bit_length()


def places(entries: Sequence[Entry]) -> list[int]:
    return [int(entry.position) for entry in entries]
