"""What is particular to STORE=postgres: ids from a clock, locks, lost commits, leftovers."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import msgspec
import pytest

from service.adapters.postgres import calls
from service.adapters.postgres.calls import PostgresSweeper
from service.adapters.postgres.door import ArchiveLimits, PostgresDoor
from service.adapters.postgres.erasing import PostgresErasure
from service.adapters.postgres.sessions import PostgresSessions
from service.adapters.postgres.transcripts import PostgresTranscripts
from service.adapters.postgres.turns import PostgresTurns
from service.domain.context import BUFFER_MESSAGES_MAX, Need
from service.domain.errors import (
    ArchiveUnavailable,
    ContextTooLarge,
    IdempotencyKeyReused,
    RequestRunning,
    SessionBusy,
    SessionNotFound,
)
from service.domain.ids import TurnId, id_milliseconds, id_time
from service.domain.messages import MessageBody, encode_body
from service.domain.sessions import SessionDocument, SessionRef
from service.ports import Append, Begin, Begun, Create, Finish, Once, PageQuery, Replayed
from tests.support.stores import showing

REF = SessionRef("tenant", "session")
NOW = 1_800_000_000_000


class SetClock:
    """A clock that shows what the test sets."""

    def __init__(self) -> None:
        self.now = NOW

    def milliseconds(self) -> int:
        return self.now

    def monotonic(self) -> float:
        return self.now / 1000


class Observations(list[Any]):
    def observe(self, what: Any) -> None:
        self.append(what)


class Store:
    """The three ports over one door."""

    def __init__(self, url: str, *, connections: int = 8, lease_seconds: float = 10) -> None:
        self.clock = SetClock()
        self.observations = Observations()
        self.door = PostgresDoor(
            url,
            ArchiveLimits(connections=connections),
            name="api",
            observer=self.observations,
        )
        self.transcripts = PostgresTranscripts(
            self.door, self.clock, self.observations, once_seconds=3600
        )
        self.sessions = PostgresSessions(self.door, self.clock, once_seconds=3600)
        self.turns = PostgresTurns(
            self.door, self.clock, once_seconds=3600, lease_seconds=lease_seconds
        )

    async def contents(self, ref: SessionRef = REF) -> list[Any]:
        messages = await self.transcripts.page(ref, PageQuery(limit=1000))
        return [message.content for message in messages]

    async def execute(self, statement: str, *arguments: Any) -> None:
        async with self.door.connection() as connection:
            await connection.execute(statement, *arguments)

    async def count(self, table: str) -> int:
        async with self.door.connection() as connection:
            return await connection.fetchval(f"SELECT count(*) FROM {table}")


@pytest.fixture
async def store(database_url: str) -> AsyncGenerator[Store]:
    async with store_on(database_url) as opened:
        yield opened


@asynccontextmanager
async def store_on(url: str, **options: Any) -> AsyncGenerator[Store]:
    opened = Store(url, **options)
    try:
        yield opened
    finally:
        await opened.door.close()


class Proxy:
    """Stands between asyncpg and the server, and can cut a connection right behind a COMMIT."""

    def __init__(self, url: str) -> None:
        self._target = urlsplit(url)
        self._server: asyncio.Server | None = None
        self.commits_to_lose = 0
        self.lost = 0

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        place = f"{self._target.username}:{self._target.password}@127.0.0.1:{port}"
        return urlunsplit(self._target._replace(netloc=place))

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = self._target.hostname, self._target.port
        from_server, to_server = await asyncio.open_connection(host, port)
        cut = asyncio.Event()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._requests(reader, to_server, cut))
                group.create_task(self._replies(from_server, writer, cut))
        finally:
            writer.close()
            to_server.close()

    async def _requests(
        self, reader: asyncio.StreamReader, to_server: asyncio.StreamWriter, cut: asyncio.Event
    ) -> None:
        while data := await read(reader):
            if b"COMMIT" in data and self.commits_to_lose:
                self.commits_to_lose -= 1
                cut.set()
            to_server.write(data)
        to_server.close()

    async def _replies(
        self, from_server: asyncio.StreamReader, writer: asyncio.StreamWriter, cut: asyncio.Event
    ) -> None:
        while data := await read(from_server):
            if cut.is_set():
                # The server has answered: the commit is done and nobody is told.
                self.lost += 1
                break
            writer.write(data)
        writer.close()


async def read(reader: asyncio.StreamReader) -> bytes:
    with suppress(ConnectionError):
        return await reader.read(65536)
    return b""


@pytest.fixture
async def proxied(database_url: str) -> AsyncGenerator[tuple[Store, Proxy]]:
    proxy = Proxy(database_url)
    async with proxy as url, store_on(url) as opened:
        yield opened, proxy


def body(text: str, role: Any = "user") -> bytes:
    return encode_body(MessageBody(role=role, content=text))


def append(*texts: str, **fields: Any) -> Append:
    return Append(ref=REF, bodies=tuple(map(body, texts)), **fields)


def once(key: str = "key", fingerprint: str = "print") -> Once:
    return Once(operation="chat", key=key, fingerprint=fingerprint)


def begin(text: str = "question", token: str = "token", **fields: Any) -> Begin:
    command = Begin(
        ref=REF,
        turn_id=TurnId(f"turn-{token}"),
        body=body(text),
        user_id=None,
        once=None,
        lease_token=token,
    )
    return msgspec.structs.replace(command, **fields)


def finish(text: str | None = "answer", token: str = "token", **fields: Any) -> Finish:
    command = Finish(
        ref=REF,
        turn_id=TurnId(f"turn-{token}"),
        lease_token=token,
        body=None if text is None else body(text, "assistant"),
        result=b"result",
        once=None,
    )
    return msgspec.structs.replace(command, **fields)


async def begun(store: Store, command: Begin) -> Begun:
    result = await store.turns.begin(command)
    assert isinstance(result, Begun)
    return result


async def end_lease(store: Store) -> None:
    await store.execute("UPDATE turn_leases SET expires_at = now() - interval '1 second'")


# --- ids ------------------------------------------------------------------------------------------


async def test_ids_grow_also_when_the_clock_steps_back(store):
    ids = list((await store.transcripts.append(append("one", "two"))).ids)
    for step in range(1, 4):
        store.clock.now = NOW - step * 60_000
        ids += (await store.transcripts.append(append("more", "and more"))).ids
    ids.append((await begun(store, begin())).user_message_id)
    ids.append((await store.turns.finish(finish())).message_id)

    assert ids == sorted(set(ids))
    assert len(await store.contents()) == len(ids)


async def test_ids_take_the_clock_when_it_goes_on(store):
    await store.transcripts.append(append("one"))
    store.clock.now = NOW + 5
    [second] = (await store.transcripts.append(append("two"))).ids

    assert id_milliseconds(second) == NOW + 5


async def test_what_follows_a_clear_or_a_deletion_is_above_it_although_the_clock_stepped_back(
    store,
):
    [first] = (await store.transcripts.append(append("one"))).ids
    await store.transcripts.clear(REF)
    store.clock.now = NOW - 60_000
    [second] = (await store.transcripts.append(append("two"))).ids
    await store.sessions.delete(REF)
    store.clock.now = NOW - 120_000
    [third] = (await store.transcripts.append(append("three"))).ids

    assert first < second < third
    assert await store.contents() == ["three"]
    assert (await store.sessions.get(REF)).message_count == 1


async def test_concurrent_appends_to_one_session_all_stand_in_one_order(store):
    commands = [append(f"{task}.0", f"{task}.1") for task in range(20)]
    results = await asyncio.gather(*map(store.transcripts.append, commands))

    messages = await store.transcripts.page(REF, PageQuery(limit=1000))
    ids = [message.id for message in messages]
    assert len(ids) == 40
    assert ids == sorted(set(ids))
    assert set(ids) == {identity for result in results for identity in result.ids}
    # Messages of one call stand together.
    callers = [str(message.content).split(".")[0] for message in messages]
    assert callers[::2] == callers[1::2]
    assert (await store.sessions.get(REF)).message_count == 40


async def test_a_clear_is_seen_in_all_of_a_recent_answer_or_in_none_of_it(store):
    said = Append(ref=REF, bodies=(body("be brief", "system"), *map(body, "12345")))
    await store.transcripts.append(said)

    async def write() -> None:
        for _ in range(30):
            await store.transcripts.clear(REF)
            await store.transcripts.append(said)

    async def watch() -> set[tuple[int, int]]:
        seen: set[tuple[int, int]] = set()
        while not writing.done():
            recent = await store.transcripts.recent(REF, Need(last=3))
            seen.add((len(recent.messages), len(recent.pinned)))
        return seen

    async with asyncio.TaskGroup() as group:
        writing = group.create_task(write())
        watching = [group.create_task(watch()) for _ in range(3)]
    assert set[tuple[int, int]]().union(*(task.result() for task in watching)) <= {(3, 1), (0, 0)}


# --- refusals -------------------------------------------------------------------------------------


async def test_refused_calls_leave_no_row_behind(store):
    for refused in (store.transcripts.clear(REF), store.sessions.delete(REF)):
        with pytest.raises(SessionNotFound):
            await refused
    assert await store.count("sessions") == 0

    await store.transcripts.append(append("mine", user_id="alice"))
    before = [await store.count(table) for table in ("sessions", "messages", "calls")]
    with pytest.raises(SessionNotFound):
        await store.transcripts.append(append("not mine", user_id="bob", once=once()))
    with pytest.raises(SessionNotFound):
        await store.turns.begin(begin(user_id="bob", once=once()))

    assert [await store.count(table) for table in ("sessions", "messages", "calls")] == before
    assert await store.count("turn_leases") == 0


async def test_an_append_that_postgres_refuses_leaves_nothing_behind(store):
    with pytest.raises(ArchiveUnavailable):
        await store.transcripts.append(
            Append(ref=REF, bodies=(body("fine"), b'{"role":"user",broken'))
        )

    tables = ("sessions", "messages", "calls")
    assert [await store.count(table) for table in tables] == [0, 0, 0]


async def test_a_turn_with_more_history_than_may_be_shown_stores_nothing(store):
    texts = [str(number) for number in range(1000)]
    for _ in range(BUFFER_MESSAGES_MAX // 1000):
        await store.transcripts.append(append(*texts))
    assert (
        len((await begun(store, begin(options=showing(None)))).history.messages)
        == BUFFER_MESSAGES_MAX
    )
    await store.turns.finish(finish(None))

    with pytest.raises(ContextTooLarge):
        await store.turns.begin(begin("one too many", options=showing(None), token="other"))
    assert (await store.sessions.get(REF)).message_count == BUFFER_MESSAGES_MAX + 1
    assert await store.count("turn_leases") == 0


# --- lost commits ---------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [1, 2])
@pytest.mark.parametrize("promise", [None, once()])
async def test_an_append_whose_commit_went_unanswered_is_there_once(proxied, promise, lost):
    store, proxy = proxied
    proxy.commits_to_lose = lost
    appended = await store.transcripts.append(append("one", "two", once=promise))

    assert proxy.lost == lost
    messages = await store.transcripts.page(REF, PageQuery(limit=10))
    assert [message.id for message in messages] == list(appended.ids)
    assert (await store.sessions.get(REF)).message_count == 2


async def test_changes_of_sessions_whose_commits_went_unanswered_are_not_refused(proxied):
    store, proxy = proxied

    async def unanswered(call: Awaitable[Any]) -> Any:
        proxy.commits_to_lose = 1
        return await call

    document = SessionDocument(metadata={"a": 1})
    created = await unanswered(store.sessions.create(Create(ref=REF, user_id="alice")))
    assert id_time(created.born_id) == (await store.sessions.get(REF)).created_at
    assert await unanswered(store.sessions.replace(REF, SessionDocument(), document))
    assert (await store.sessions.get(REF)).document == document
    await unanswered(store.transcripts.clear(REF))
    await unanswered(store.sessions.delete(REF))

    assert proxy.lost == 4
    with pytest.raises(SessionNotFound):
        await store.sessions.get(REF)


async def test_steps_of_a_turn_whose_commits_went_unanswered_happen_once(proxied):
    store, proxy = proxied
    await store.transcripts.append(append("before"))

    proxy.commits_to_lose = 1
    started = await begun(store, begin())
    assert [message.content for message in started.history.messages] == ["before"]
    proxy.commits_to_lose = 1
    finished = await store.turns.finish(finish())

    assert proxy.lost == 2
    assert finished.outcome == "stored"
    messages = await store.transcripts.page(REF, PageQuery(limit=10))
    assert [message.content for message in messages] == ["before", "question", "answer"]
    assert messages[-1].id == finished.message_id
    assert await store.count("turn_leases") == 0


async def test_a_server_that_is_away_is_an_error_at_once():
    async with store_on("postgresql://nobody@127.0.0.1:1/none") as store, asyncio.timeout(1):
        with pytest.raises(ArchiveUnavailable):
            await store.transcripts.append(append("one"))


async def test_a_connection_that_was_ended_while_idle_costs_no_call(store):
    await store.transcripts.append(append("one"))
    async with store.door.connection() as connection:
        pid = await connection.fetchval("SELECT pg_backend_pid()")
    admin = await asyncpg.connect(store.door._url)
    await admin.execute("SELECT pg_terminate_backend($1)", pid)
    await admin.close()

    await store.transcripts.append(append("two"))
    assert await store.contents() == ["one", "two"]


# --- records --------------------------------------------------------------------------------------


async def test_an_expired_record_counts_as_absent_and_is_replaced(store):
    first = await store.transcripts.append(append("one", once=once()))
    assert (await store.transcripts.append(append("one", once=once()))).ids == first.ids
    with pytest.raises(IdempotencyKeyReused):
        await store.transcripts.append(append("two", once=once(fingerprint="other")))

    await store.execute("UPDATE calls SET expires_at = now()")
    second = await store.transcripts.append(append("two", once=once(fingerprint="other")))
    assert not second.replayed
    again = await store.transcripts.append(append("two", once=once(fingerprint="other")))
    assert (again.ids, again.replayed) == (second.ids, True)
    assert await store.count("calls") == 1


async def test_concurrent_repeats_of_one_key_append_once(store):
    commands = [append("one", once=once()) for _ in range(10)]
    results = await asyncio.gather(*map(store.transcripts.append, commands))

    assert len({result.ids for result in results}) == 1
    assert sum(not result.replayed for result in results) == 1
    assert await store.contents() == ["one"]


async def test_sweeping_removes_what_has_expired_in_bounded_batches(store, monkeypatch):
    for number in range(7):
        await store.transcripts.append(append("old", once=once(f"old-{number}")))
    await store.execute("UPDATE calls SET expires_at = now() - interval '1 second'")
    await store.transcripts.append(append("new", once=once("new")))
    monkeypatch.setattr(calls, "SWEEP_ROWS_MAX", 2)

    monkeypatch.setattr(calls, "SWEEP_BATCHES_MAX", 2)
    await PostgresSweeper(store.door).sweep()
    assert await store.count("calls") == 4

    await PostgresSweeper(store.door).sweep()
    assert await store.count("calls") == 1
    assert (await store.transcripts.append(append("new", once=once("new")))).replayed


async def test_sweeping_passes_over_what_another_transaction_holds(store):
    await store.transcripts.append(append("one", once=once("held")))
    await store.transcripts.append(append("two", once=once("free")))
    await store.execute("UPDATE calls SET expires_at = now() - interval '1 second'")

    async with store.door.transaction() as holder:
        await holder.execute("SELECT FROM calls WHERE key = 'held' FOR UPDATE")
        await PostgresSweeper(store.door).sweep()
    assert await store.count("calls") == 1


async def test_a_lease_is_swept_only_when_no_turn_can_be_that_old(store):
    await begun(store, begin())
    await end_lease(store)
    await PostgresSweeper(store.door).sweep()
    assert await store.count("turn_leases") == 1

    await store.execute("UPDATE turn_leases SET expires_at = now() - interval '2 hours'")
    await PostgresSweeper(store.door).sweep()
    assert await store.count("turn_leases") == 0


# --- turns ----------------------------------------------------------------------------------------


async def test_between_begin_and_finish_no_connection_is_used_and_no_lock_held(database_url):
    async with store_on(database_url, connections=1) as store:
        await begun(store, begin())
        watcher = await asyncpg.connect(database_url)
        busy = await watcher.fetchval(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            " AND backend_type = 'client backend' AND (state <> 'idle' OR xact_start IS NOT NULL)"
        )
        await watcher.execute("SELECT FROM sessions FOR UPDATE NOWAIT")
        await watcher.close()
        await store.transcripts.append(append("beside"))
        await store.turns.finish(finish())

        assert busy == 0
        assert await store.contents() == ["question", "beside", "answer"]


async def test_a_turn_taken_up_again_sees_all_that_stood_before_its_message(store):
    await store.transcripts.append(append("1", "2", "3"))
    first = await begun(store, begin(options=showing(2), once=once()))
    await store.turns.fail(finish(None, once=once()))
    await store.transcripts.append(append("beside", "and beside"))
    second = await begun(store, begin(options=showing(2), once=once(), token="second"))

    assert second.user_message_id == first.user_message_id
    assert [message.content for message in second.history.messages] == ["2", "3"]


async def test_the_session_is_busy_until_the_lease_of_a_dead_owner_ends(store):
    first = await begun(store, begin(once=once()))
    with pytest.raises(RequestRunning):
        await store.turns.begin(begin(once=once(), token="second"))
    with pytest.raises(SessionBusy) as busy:
        await store.turns.begin(begin(token="third"))
    assert busy.value.retry_after_seconds in range(1, 11)

    await end_lease(store)
    second = await begun(store, begin(once=once(), token="second"))
    assert second.user_message_id == first.user_message_id
    assert await store.turns.renew(REF, "token") == "lost"
    assert (await store.turns.finish(finish(once=once()))).outcome == "lost"
    stored = await store.turns.finish(finish(token="second", once=once()))
    assert stored.outcome == "stored"
    replay = await store.turns.begin(begin(once=once(), token="fourth"))
    assert replay == Replayed(result=b"result", message_id=stored.message_id)


async def test_an_expired_lease_that_nobody_took_is_still_its_owners(store):
    await begun(store, begin())
    await end_lease(store)
    assert await store.turns.renew(REF, "token") == "held"
    await end_lease(store)
    assert (await store.turns.finish(finish())).outcome == "stored"
    assert await store.contents() == ["question", "answer"]


@pytest.mark.parametrize("how", ["clear", "delete"])
async def test_a_turn_whose_session_was_emptied_is_cancelled_and_its_repeat_asks_anew(store, how):
    first = await begun(store, begin(once=once()))
    await (store.transcripts.clear(REF) if how == "clear" else store.sessions.delete(REF))
    assert await store.turns.renew(REF, "token") == "lost"
    assert (await store.turns.finish(finish(once=once()))).outcome == "cancelled"

    second = await begun(store, begin(once=once(), token="second"))
    assert second.user_message_id > first.user_message_id
    assert second.history.exists == (how == "clear")
    assert await store.contents() == ["question"]


async def test_of_concurrent_begins_one_has_the_session(store):
    commands = [begin(token=str(number)) for number in range(10)]
    results = await asyncio.gather(*map(store.turns.begin, commands), return_exceptions=True)

    assert sum(isinstance(result, Begun) for result in results) == 1
    assert sum(isinstance(result, SessionBusy) for result in results) == 9
    assert await store.contents() == ["question"]


async def test_work_whose_time_is_over_is_not_repeated_though_its_connection_is_lost(database_url):
    """The loss then stands in the place of the cancellation."""
    limits = ArchiveLimits(call_seconds=0.2)
    door = PostgresDoor(database_url, limits, name="test", observer=Observations())
    runs = 0

    async def work(_: Any) -> None:
        nonlocal runs
        runs += 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ConnectionResetError from None

    async with asyncio.timeout(5):
        with pytest.raises(ArchiveUnavailable):
            await door.settled(work)
    assert runs == 1
    await door.close()


@pytest.mark.parametrize("lost", [1, 2])
async def test_an_erasure_whose_last_commits_went_unanswered_tells_what_it_erased(
    proxied, lost, monkeypatch
):
    store, proxy = proxied
    await store.transcripts.append(msgspec.structs.replace(append("one", "two"), user_id="ada"))
    erasure: Any = PostgresErasure
    erase = erasure._erase

    async def then_lose(*arguments: Any) -> Any:
        erased = await erase(*arguments)
        # What follows is the user's counters.
        proxy.commits_to_lose = lost
        return erased

    monkeypatch.setattr(erasure, "_erase", then_lose)
    erased = await PostgresErasure(store.door, store.clock).erase(REF.tenant, "ada")
    assert proxy.lost == lost
    assert erased is not None
    assert (erased.archive_sessions, erased.archive_messages) == (1, 2)
    assert await store.count("messages") == 0
