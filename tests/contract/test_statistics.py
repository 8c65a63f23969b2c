"""Statistics: counts of every store that has an archive."""

from datetime import UTC, date, datetime, timedelta, timezone

import asyncpg
import pytest

from service.bootstrap.ambient import SystemClock
from service.core.statistics import UserStatistics
from service.domain.errors import InvalidValue
from service.domain.ids import id_time, message_id
from service.domain.messages import MessageBody, TurnCost, encode_body
from service.domain.statistics import By, Counted, Item, Place, key_of, summed
from service.ports import Append, StatisticsQuery
from tests.support.stores import Kept, ref, said

over_archives = pytest.mark.parametrize(
    "store_settings", ["memory", "postgres", "hybrid"], indirect=True
)


def answer(model: str, asked: int, answered: int) -> bytes:
    cost = TurnCost(model=model, input_tokens=asked, output_tokens=answered)
    return encode_body(MessageBody(role="assistant", content="x", cost=cost))


async def append(kept: Kept, *bodies: bytes, session="s", user=None, tenant="default"):
    command = Append(ref=ref(session, tenant), bodies=bodies, user_id=user)
    return (await kept.store.transcripts.append(command)).ids


async def counted(
    kept: Kept,
    by: By = "day",
    *,
    user_id: str | None = None,
    start: datetime | None = None,
    end: datetime | None = None,
    tenant="default",
) -> list[Item]:
    await kept.flush()
    statistics = UserStatistics(kept.store.statistics, clock=SystemClock())
    page = await statistics.counted(tenant, by=by, user_id=user_id, start=start, end=end)
    assert not page.truncated
    return list(page.items)


def item(key: str | None, messages: int, turns=0, asked=0, answered=0, sessions=1) -> Item:
    return Item(
        key=key,
        messages=messages,
        turns=turns,
        input_tokens=asked,
        output_tokens=answered,
        active_sessions=sessions,
    )


@pytest.mark.parametrize("store_settings", ["redis"], indirect=True)
async def test_a_store_without_an_archive_says_so(memory):
    with pytest.raises(InvalidValue, match="no archive"):
        await counted(memory)


@over_archives
async def test_messages_turns_tokens_and_sessions_are_counted(memory):
    [first] = await append(memory, said("q"), session="a", user="ada")
    await append(memory, answer("m1", 10, 3), session="a")
    await append(memory, said("q"), answer("m2", 7, 2), session="b", user="ada")
    await append(memory, said("q"), said("r"), session="c")
    await append(memory, said("q"), tenant="other")

    day = id_time(first).date()
    year, week, _ = day.isocalendar()
    assert await counted(memory) == [item(day.isoformat(), 6, 2, 17, 5, sessions=3)]
    assert await counted(memory, "week") == [item(f"{year}-W{week:02d}", 6, 2, 17, 5, sessions=3)]
    assert await counted(memory, "user") == [
        item("ada", 4, 2, 17, 5, sessions=2),
        item(None, 2),
    ]
    assert await counted(memory, "model") == [
        item(None, 4, sessions=3),
        item("m1", 1, 1, 10, 3),
        item("m2", 1, 1, 7, 2),
    ]
    assert await counted(memory, "model", user_id="ada") == [
        item(None, 2, sessions=2),
        item("m1", 1, 1, 10, 3),
        item("m2", 1, 1, 7, 2),
    ]
    assert await counted(memory, user_id="nobody") == []
    assert await counted(memory, tenant="other") == [item(day.isoformat(), 1)]


@over_archives
async def test_what_was_counted_stays_when_it_is_forgotten(memory):
    await append(memory, said("a"), said("b"))
    await memory.flush()
    await memory.store.transcripts.clear(ref())
    await append(memory, said("c"))
    await memory.flush()
    await memory.store.sessions.delete(ref())
    assert [one.messages for one in await counted(memory)] == [3]


@over_archives
async def test_a_model_without_a_name_of_lawful_length_stops_nothing(memory):
    await append(memory, answer("x" * 9000, 1, 1), answer("é" * 200, 1, 1))
    [found] = await counted(memory, "model")
    assert (found.key, found.messages, found.turns) == (None, 2, 2)


@over_archives
async def test_days_are_those_of_the_range(memory):
    [identity] = await append(memory, said("a"))
    now = id_time(identity)
    midnight = datetime.combine(now.date(), datetime.min.time(), tzinfo=UTC)
    day = timedelta(days=1)
    for start, end, messages in [
        (midnight, midnight + day, 1),
        (midnight + day / 2, midnight + day / 2 + timedelta(seconds=1), 1),
        (midnight - day, midnight, 0),
        (midnight + day, midnight + 2 * day, 0),
        (midnight - 300 * day, None, 1),
    ]:
        found = await counted(memory, start=start, end=end)
        assert sum(one.messages for one in found) == messages, (start, end)


@pytest.mark.parametrize(
    ("start", "end", "field"),
    [
        ("2026-01-02T00:00:00Z", "2026-01-01T00:00:00Z", "to"),
        ("2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z", "to"),
        ("2024-01-01T00:00:00Z", "2025-01-02T00:00:00Z", "from"),
        ("2024-01-01T00:00:00", None, "from"),
    ],
)
@pytest.mark.parametrize("store_settings", ["memory"], indirect=True)
async def test_a_bad_range_is_refused(memory, start, end, field):
    until = None if end is None else datetime.fromisoformat(end)
    with pytest.raises(InvalidValue) as refused:
        await counted(memory, start=datetime.fromisoformat(start), end=until)
    assert refused.value.errors[0].field == field


def test_weeks_are_those_of_iso_8601():
    place = Place("t", date(2027, 1, 1), "", "", "s")
    assert key_of(place, "week") == "2026-W53"
    later = Place("t", date(2024, 12, 30), "", "", "s")
    assert key_of(later, "week") == "2025-W01"
    both = [(place, Counted(messages=1)), (later, Counted(messages=2))]
    assert [one.key for one in summed(both, "week")] == ["2025-W01", "2026-W53"]


@pytest.mark.parametrize("store_settings", ["postgres", "hybrid"], indirect=True)
async def test_weeks_around_new_year_are_those_of_postgres_as_well(memory, database_url):

    connection = await asyncpg.connect(database_url)
    for day in (date(2027, 1, 1), date(2024, 12, 30), date(2024, 12, 29)):
        await connection.execute(
            "INSERT INTO daily_counts (tenant, day, user_id, model, slot, messages)"
            " VALUES ('default', $1, '', '', 0, 1)",
            day,
        )
    await connection.close()
    statistics = memory.store.statistics
    assert statistics is not None
    query = StatisticsQuery(
        tenant="default", by="week", first=date(2024, 1, 1), end=date(2028, 1, 1)
    )
    keys = [one.key for one in await statistics.items(query)]
    assert keys == ["2024-W52", "2025-W01", "2026-W53"]


def test_an_id_says_its_day():
    moment = datetime(2026, 11, 24, 23, 59, 59, 999000, tzinfo=UTC)
    identity = message_id(round(moment.timestamp() * 1000), 0, 0)
    assert id_time(identity).date() == date(2026, 11, 24)


@over_archives
@pytest.mark.parametrize("flushed", [False, True])
@pytest.mark.parametrize("gone", ["clear", "delete"])
async def test_what_was_said_is_counted_though_it_was_forgotten_at_once(memory, gone, flushed):
    for user in ("ada", None):
        [first] = await append(memory, said("q"), user="ada")
        await append(memory, answer("m", 10, 3), user=user)
        if flushed:
            await memory.flush()
        if gone == "clear":
            await memory.store.transcripts.clear(ref())
        else:
            await memory.store.sessions.delete(ref())
        await append(memory, said("r"), user="ada")
        if flushed:
            await memory.flush()
        await memory.store.transcripts.clear(ref())
        await memory.store.sessions.delete(ref())
    day = id_time(first).date().isoformat()
    assert await counted(memory, user_id="ada") == [item(day, 6, 2, 20, 6)]
    assert await counted(memory) == [item(day, 6, 2, 20, 6)]


@over_archives
async def test_times_that_no_day_after_them_has_are_refused(memory):
    last = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
    west = last.replace(tzinfo=timezone(timedelta(hours=-14)))
    for time in (last, west):
        with pytest.raises(InvalidValue, match="to: is out of range"):
            await counted(memory, end=time)
        with pytest.raises(InvalidValue, match="from: is out of range"):
            await counted(memory, start=time)


@over_archives
@pytest.mark.parametrize("flushed", [False, True])
async def test_what_came_after_a_deletion_is_not_the_former_users(memory, flushed):
    await append(memory, said("q"), user="ada")
    await memory.flush()
    await memory.store.sessions.delete(ref())
    if flushed:
        await memory.flush()
    await append(memory, said("r"))
    if flushed:
        await memory.flush()
    await memory.store.transcripts.clear(ref())
    assert sorted(await counted(memory, "user"), key=lambda one: one.key or "") == [
        item(None, 1),
        item("ada", 1),
    ]
