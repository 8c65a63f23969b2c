"""Imports over HTTP into the stores that have an archive: all or nothing, seen by every reader."""

import asyncio
import math
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import msgspec
import pytest
from asyncpg.transaction import Transaction
from redis.asyncio import Redis

from service.adapters.openai.model import NoModel
from service.adapters.postgres.door import ArchiveLimits, PostgresDoor
from service.adapters.postgres.erasing import PostgresArchiveErasure
from service.adapters.postgres.imports import IMPORTS_MAX
from service.adapters.postgres.imports import _Run as PostgresRun  # pyright: ignore[reportPrivateUsage]  # its end is the only place between
from service.adapters.postgres.retention import PostgresRetention
from service.adapters.redis.client import HotLimits, RedisDoor
from service.adapters.redis.healing import RedisHealing
from service.adapters.redis.retention import RedisRetention
from service.bootstrap.ambient import SystemClock
from service.bootstrap.connections import session_arguments
from service.bootstrap.flushers import open_flusher
from service.core.retaining import Retaining
from service.core.tiered.archiving import ArchiveWaits
from service.domain.errors import ArchiveUnavailable, HotUnavailable
from service.domain.ids import EPOCH, MILLISECOND, first_id_at
from service.domain.sessions import SessionRef
from service.settings import Settings
from tests.support.api import Client, api_client
from tests.support.stores import Recorder

LINES = {"content-type": "application/jsonl"}
START = datetime(2020, 1, 1, tzinfo=UTC)
EDGE = datetime(2004, 1, 30, 10, 32, 37, tzinfo=UTC)
"""Times from here on are not whole milliseconds as floats."""
MESSAGES = "/v1/sessions/s/messages"


@pytest.fixture(params=["postgres", "hybrid"])
def settings(request: pytest.FixtureRequest) -> Settings:
    hybrid = request.param == "hybrid"
    return Settings(
        store=request.param,
        database_url=request.getfixturevalue("database_url"),
        redis_url=request.getfixturevalue("redis_url") if hybrid else None,
        hot_messages_max=20,
        archive_wait_seconds=0.5,
    )


@pytest.fixture
def hybrid_only(hybrid_settings: Settings) -> Settings:
    return msgspec.structs.replace(hybrid_settings, hot_messages_max=20, archive_wait_seconds=0.5)


@pytest.fixture
async def api(settings: Settings) -> AsyncGenerator[Client]:
    async with api_client(NoModel("none"), settings, body_bytes_max=100_000) as client:
        yield client


@pytest.fixture
async def hybrid(hybrid_only: Settings) -> AsyncGenerator[Client]:
    async with api_client(NoModel("none"), hybrid_only, body_bytes_max=100_000) as client:
        yield client


async def flush(settings: Settings) -> None:
    if settings.store != "hybrid":
        return
    clock, recorder = SystemClock(), Recorder()
    async with open_flusher(settings, clock=clock, observer=recorder) as (flusher, ownership):
        await ownership.renew()
        while await flusher.flush_once():
            pass
        await ownership.give_up()


def lines(count: int, *, first: int = 0, **fields: Any) -> bytes:
    return b"".join(
        msgspec.json.encode(
            {
                "role": "user",
                "content": str(number),
                "created_at": START + timedelta(minutes=number),
            }
            | fields
        )
        + b"\n"
        for number in range(first, first + count)
    )


async def imported(
    api: Client, body: Any, session: str = "s", *, key: str | None = None, **query: str
) -> httpx.Response:
    headers = LINES | ({"Idempotency-Key": key} if key else {})
    path = f"/v1/sessions/{session}/import"
    return await api.http.post(path, content=body, headers=headers, params=query)


async def contents(api: Client, **query: Any) -> list[str]:
    response = await api.http.get(MESSAGES, params={"limit": 1000} | query)
    assert response.status_code == 200, response.text
    return [item["content"] for item in response.json()["items"]]


async def say(api: Client, content: str, **fields: Any) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": content}]} | fields
    response = await api.http.post(MESSAGES, json=body)
    assert response.status_code == 201, response.text
    return response


def refused(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    problem = response.json()
    assert (response.status_code, problem["code"]) == (status, code), problem
    return problem


def texts(*numbers: int) -> list[str]:
    return [str(number) for number in numbers]


async def test_what_was_imported_is_read_everywhere_with_its_times(api):
    response = await imported(api, lines(30), user_id="ada")
    assert response.status_code == 201, response.text
    answer = response.json()
    assert set(answer) == {"imported", "first_id", "last_id"}
    assert answer["imported"] == 30

    page = (await api.http.get(MESSAGES, params={"limit": 30})).json()["items"]
    assert [item["content"] for item in page] == texts(*range(30))
    assert (page[0]["id"], page[-1]["id"]) == (answer["first_id"], answer["last_id"])
    assert page[7]["created_at"] == "2020-01-01T00:07:00Z"
    session = (await api.http.get("/v1/sessions/s")).json()
    assert (session["message_count"], session["user_id"]) == (30, "ada")
    assert session["archived_through"] == session["last_id"] == answer["last_id"]
    history = (await api.http.get("/history/s", params={"limit": 3})).json()["messages"]
    assert [item["content"] for item in history] == texts(27, 28, 29)
    listed = (await api.http.get("/v1/sessions", params={"user_id": "ada"})).json()["items"]
    assert [item["id"] for item in listed] == ["s"]


async def test_a_range_of_time_is_one_of_the_imported_times(api):
    await imported(api, lines(30))
    bounds = {"from": "2020-01-01T00:05:00Z", "to": "2020-01-01T00:08:00Z"}
    assert await contents(api, **bounds) == texts(5, 6, 7)


async def test_a_bad_line_stores_nothing_of_those_before_it(api):
    body = lines(2500) + b'{"role":"user"}\n' + lines(10)
    problem = refused(await imported(api, body), 422, "invalid_value")
    assert [error["field"] for error in problem["errors"]] == ["line 2501.content"]
    refused(await api.http.get("/v1/sessions/s"), 404, "not_found")
    assert (await imported(api, lines(3))).status_code == 201
    assert await contents(api) == texts(0, 1, 2)


async def test_only_an_empty_session_is_imported_into(api, settings):
    last_id = (await say(api, "here")).json()["messages"][0]["id"]
    for _ in range(2):
        assert refused(await imported(api, lines(3)), 412, "precondition_failed")["last_id"] == (
            last_id
        )
        await flush(settings)
    assert await contents(api) == ["here"]
    assert (await api.http.get("/v1/sessions/s")).json()["message_count"] == 1


async def test_an_import_into_another_users_session_finds_none(api, settings):
    await api.http.post("/v1/sessions", json={"id": "s", "user_id": "ada"})
    for _ in range(2):
        refused(await imported(api, lines(1), user_id="bob"), 404, "not_found")
        await flush(settings)
    assert (await imported(api, lines(1), user_id="ada")).status_code == 201


async def test_a_session_keeps_what_it_was_made_with(api, settings):
    made = {"id": "s", "user_id": "ada", "metadata": {"a": 1}, "ttl_seconds": 100}
    await api.http.post("/v1/sessions", json=made | {"context": {"strategy": "buffer"}})
    assert (await imported(api, lines(30))).status_code == 201
    for _ in range(2):
        session = (await api.http.get("/v1/sessions/s")).json()
        assert {name: session[name] for name in made} == made
        assert session["message_count"] == 30
        context = (await api.http.get("/v1/sessions/s/context")).json()
        assert (context["strategy"], len(context["messages"])) == ("buffer", 30)
        await flush(settings)


@pytest.mark.parametrize("flushed", [True, False])
@pytest.mark.parametrize("gone", ["/v1/sessions/s", MESSAGES])
async def test_a_cleared_or_deleted_session_is_empty(hybrid, hybrid_only, gone, flushed):
    await say(hybrid, "old", user_id="ada")
    await flush(hybrid_only)
    assert (await hybrid.http.delete(gone)).status_code == 204
    if flushed:
        await flush(hybrid_only)
        response = await imported(hybrid, lines(25))
    else:
        # The archive does not know yet: the import waits for it, and is told where that is long.
        refused(await imported(hybrid, lines(25)), 503, "archive_unavailable")
        # Nor was what is gone taken back from the archive.
        assert (await hybrid.http.get("/history/s")).json()["messages"] == []
        found = (await hybrid.http.get("/v1/sessions/s")).status_code
        assert found == (200 if gone == MESSAGES else 404)
        importing = asyncio.ensure_future(imported(hybrid, lines(25)))
        await flush(hybrid_only)
        response = await importing
    assert response.status_code == 201, response.text
    assert await contents(hybrid) == texts(*range(25))
    session = (await hybrid.http.get("/v1/sessions/s")).json()
    assert (session["message_count"], session["user_id"]) == (
        25,
        "ada" if gone == MESSAGES else None,
    )
    await say(hybrid, "new")
    await flush(hybrid_only)
    assert await contents(hybrid) == [*texts(*range(25)), "new"]


async def test_a_cleared_or_deleted_session_is_empty_in_postgres_too(api, settings):
    for gone in (MESSAGES, "/v1/sessions/s"):
        await say(api, "old")
        await flush(settings)
        await api.http.delete(gone)
        await flush(settings)
        assert (await imported(api, lines(5))).status_code == 201
        assert await contents(api) == texts(*range(5))
        # Its row names it again: a listing and a search show it.
        listed = (await api.http.get("/v1/sessions")).json()["items"]
        assert [session["id"] for session in listed] == ["s"]
        found = (await api.http.get("/v1/messages?limit=1")).json()["items"]
        assert [message["session_id"] for message in found] == ["s"]
        await api.http.delete(gone)
        await flush(settings)


class Gate:
    """A body that stops in its middle until it may go on."""

    def __init__(self, before: bytes, after: bytes) -> None:
        self.reached, self.may_go_on = asyncio.Event(), asyncio.Event()
        self._before, self._after = before, after

    async def __aiter__(self) -> AsyncGenerator[bytes]:
        yield self._before
        self.reached.set()
        await self.may_go_on.wait()
        yield self._after


async def test_what_is_said_beside_an_import_comes_after_it(api, settings):
    gate = Gate(lines(1500), lines(1500, first=1500))
    importing = asyncio.ensure_future(imported(api, gate))
    await gate.reached.wait()
    # A reader that finds the session empty, one that writes, and a flusher that is not held up.
    await api.http.get("/history/s")
    await say(api, "beside", user_id="ada")
    await asyncio.wait_for(flush(settings), 3)
    await say(api, "unflushed")
    assert await contents(api) == ["beside", "unflushed"]
    gate.may_go_on.set()

    response = await importing
    assert response.status_code == 201, response.text
    for _ in range(2):
        session = (await api.http.get("/v1/sessions/s")).json()
        assert (session["message_count"], session["user_id"]) == (3002, "ada")
        recent = (await api.http.get("/history/s", params={"limit": 30})).json()["messages"]
        assert [one["content"] for one in recent][-3:] == ["2999", "beside", "unflushed"]
        assert len(recent) == 30
        assert (await contents(api))[:2] == texts(0, 1)
        await flush(settings)


@pytest.mark.parametrize("path", ["/v1/sessions/s", MESSAGES])
async def test_a_session_that_is_cleared_or_deleted_beside_an_import(hybrid, hybrid_only, path):
    gate = Gate(lines(1500), lines(10, first=1500))
    importing = asyncio.ensure_future(imported(hybrid, gate))
    await gate.reached.wait()
    await say(hybrid, "beside")
    await hybrid.http.delete(path)
    gate.may_go_on.set()
    assert (await importing).status_code == 201
    for _ in range(2):
        history = await hybrid.http.get("/history/s")
        assert history.json()["messages"] == []
        found = (await hybrid.http.get("/v1/sessions/s")).status_code
        assert found == (200 if path == MESSAGES else 404)
        await flush(hybrid_only)
    await say(hybrid, "new")
    assert await contents(hybrid) == ["new"]
    assert (await hybrid.http.get("/v1/sessions/s")).json()["message_count"] == 1


async def test_another_import_into_the_session_is_told_so(api):
    gate = Gate(lines(1), lines(1, first=1))
    importing = asyncio.ensure_future(imported(api, gate, key="k"))
    await gate.reached.wait()
    assert refused(await imported(api, lines(1)), 409, "session_busy")
    assert refused(await imported(api, lines(1), key="k"), 409, "request_running")
    gate.may_go_on.set()
    assert (await importing).json()["imported"] == 2


async def test_more_imports_than_there_are_connections_are_refused(api):
    gates = [Gate(lines(1), lines(1, first=1)) for _ in range(IMPORTS_MAX)]
    running = [
        asyncio.ensure_future(imported(api, gate, f"s{place}")) for place, gate in enumerate(gates)
    ]
    for gate in gates:
        await gate.reached.wait()
    response = await imported(api, lines(1))
    refused(response, 503, "overloaded")
    assert response.headers["retry-after"]
    for gate in gates:
        gate.may_go_on.set()
    assert [(await one).status_code for one in running] == [201] * IMPORTS_MAX
    assert (await imported(api, lines(1))).status_code == 201


async def test_a_repeated_call_is_answered_as_the_first_was(api):
    first = await imported(api, lines(3), key="k", user_id="ada")
    again = await imported(api, lines(3), key="k", user_id="ada")
    assert (again.status_code, again.json()) == (201, first.json())
    assert "Idempotency-Replayed" not in first.headers
    assert again.headers["Idempotency-Replayed"] == "true"
    assert await contents(api) == texts(0, 1, 2)
    for other in (
        await imported(api, lines(4), key="k", user_id="ada"),
        await imported(api, lines(3), key="k"),
    ):
        refused(other, 422, "idempotency_key_reused")
    refused(await imported(api, lines(3), key="other"), 412, "precondition_failed")


async def test_a_refused_call_leaves_its_key_free(api):
    refused(await imported(api, lines(3) + b"{}", key="k"), 400, "invalid_request")
    assert (await imported(api, lines(3), key="k")).status_code == 201


@pytest.mark.parametrize("key", ["k", None])
@pytest.mark.parametrize("user_id", ["bob", None])
async def test_an_import_that_dies_behind_its_commit_hides_nothing(
    hybrid, hybrid_only, monkeypatch, key, user_id
):
    async def died(*_: Any, **__: Any) -> None:
        raise HotUnavailable("gone")

    # It is known to be empty, and nobody's.
    assert (await hybrid.http.post("/v1/sessions", json={"id": "s"})).status_code == 201
    await flush(hybrid_only)
    query = {"user_id": user_id} if user_id else {}
    with monkeypatch.context() as patch:
        patch.setattr(RedisHealing, "heal", died)
        refused(await imported(hybrid, lines(3), key=key, **query), 503, "hot_unavailable")
    assert await contents(hybrid) == texts(0, 1, 2)
    # Nobody waits for what the dead one cannot tell any more.
    hers = {"messages": [{"role": "user", "content": "hers"}], "user_id": "eve"}
    if user_id:
        assert (await hybrid.http.post(MESSAGES, json=hers)).status_code == 404
    assert (await hybrid.http.get("/v1/sessions/s")).json()["user_id"] == user_id
    await say(hybrid, "new")
    again = await imported(hybrid, lines(3), key=key, **query)
    assert again.status_code == (201 if key else 412)
    assert again.headers.get("Idempotency-Replayed") == ("true" if key else None)
    for _ in range(2):
        assert await contents(hybrid) == [*texts(0, 1, 2), "new"]
        assert len((await hybrid.http.get("/history/s")).json()["messages"]) == 4
        await flush(hybrid_only)


async def test_a_session_whose_import_died_is_its_owners_at_once(hybrid, hybrid_only, monkeypatch):
    async def died(*_: Any, **__: Any) -> None:
        raise HotUnavailable("gone")

    await hybrid.http.post("/v1/sessions", json={"id": "s"})
    await flush(hybrid_only)
    with monkeypatch.context() as patch:
        patch.setattr(RedisHealing, "heal", died)
        assert (await imported(hybrid, lines(3), user_id="bob")).status_code == 503
    hers = {"messages": [{"role": "user", "content": "hers"}], "user_id": "eve"}

    assert (await hybrid.http.post(MESSAGES, json=hers)).status_code == 404
    assert (await hybrid.http.get("/v1/sessions/s")).json()["user_id"] == "bob"
    assert await contents(hybrid) == texts(0, 1, 2)
    erasing = asyncio.ensure_future(hybrid.http.delete("/v1/users/bob"))
    await asyncio.wait([erasing], timeout=0.2)
    await flush(hybrid_only)
    assert (await erasing).json()["erased"]["archive_messages"] == 3


async def test_an_import_that_is_refused_at_its_end_keeps_nobody_out(hybrid, monkeypatch):
    reserve = RedisHealing.reserve

    async def reply_lost(*arguments: Any, **named: Any) -> bool:
        await reserve(*arguments, **named)
        raise HotUnavailable("gone")

    await hybrid.http.post("/v1/sessions", json={"id": "s"})
    monkeypatch.setattr(RedisHealing, "reserve", reply_lost)
    assert (await imported(hybrid, lines(1), user_id="bob")).status_code == 503
    monkeypatch.undo()
    await say(hybrid, "hers", user_id="eve")
    assert await contents(hybrid) == ["hers"]


async def test_reasons_to_refuse_before_a_line_is_read(api):
    refused(await imported(api, b""), 422, "invalid_value")
    path = "/v1/sessions/s/import"
    refused(await api.http.post(path, content=lines(1)), 415, "unsupported_media_type")
    refused(await api.http.post(path, json={}), 415, "unsupported_media_type")
    refused(await imported(api, lines(1), key="a b"), 422, "invalid_value")
    refused(await imported(api, lines(1), user_id=""), 422, "invalid_value")
    refused(await imported(api, lines(1), other="x"), 400, "invalid_request")
    for media_type in ("application/x-ndjson", "application/x-jsonlines; charset=utf-8"):
        headers = {"content-type": media_type}
        session = f"/v1/sessions/{media_type[-5:]}/import".replace("=", "")
        assert (await api.http.post(session, content=lines(1), headers=headers)).status_code == 201


@pytest.fixture(params=["memory", "redis"])
def forgetful(request: pytest.FixtureRequest) -> Settings:
    url = request.getfixturevalue("redis_url") if request.param == "redis" else None
    return Settings(store=request.param, redis_url=url)


async def test_a_store_without_an_archive_says_so_before_it_reads(forgetful):
    async with api_client(NoModel("none"), forgetful) as api:
        gate = Gate(b"", b"")
        problem = refused(await imported(api, gate), 422, "invalid_value")
        assert "this store has no archive" in problem["detail"]
        assert not gate.reached.is_set()


@pytest.mark.parametrize("named", [True, False])
async def test_what_was_imported_is_found_and_counted_under_its_owner(api, settings, named):
    if not named:
        await api.http.post("/v1/sessions", json={"id": "s", "user_id": "ada"})
        await flush(settings)
    path = "/v1/sessions/s/import" + ("?user_id=ada" if named else "")
    response = await api.http.post(path, content=lines(3, content="東京 tower"), headers=LINES)
    assert response.status_code == 201, response.text
    for query in (
        "q=tower",
        "q=東京",
        "user_id=ada",
        "q=tower&user_id=ada&to=2020-01-02T00:00:00Z",
    ):
        found = (await api.http.get(f"/v1/messages?{query}")).json()["items"]
        assert len(found) == 3, query
    assert (await api.http.get("/v1/messages?user_id=eve")).json()["items"] == []
    days = "from=2020-01-01T00:00:00Z&to=2020-02-01T00:00:00Z"
    stats = (await api.http.get(f"/v1/stats?{days}&user_id=ada")).json()["items"]
    assert [(one["key"], one["messages"]) for one in stats] == [("2020-01-01", 3)]


async def test_retention_ends_no_session_into_which_something_was_imported(
    hybrid, hybrid_only, database_url, redis_url
):
    await hybrid.http.post("/v1/sessions", json={"id": "s", "user_id": "ada"})
    await flush(hybrid_only)
    async with Redis.from_url(redis_url, protocol=2) as redis:
        await redis.flushdb()
    [listed] = (await hybrid.http.get("/v1/sessions")).json()["items"]
    born = datetime.fromisoformat(listed["updated_at"])
    before = first_id_at(round(born.timestamp() * 1000) + 1)
    observer = Recorder()
    door = PostgresDoor(database_url, ArchiveLimits(), name="test", observer=observer)
    redis_door = RedisDoor(redis_url, HotLimits())
    hot = RedisRetention(redis_door, session_arguments(hybrid_only, archived=True))
    retaining = Retaining(PostgresRetention(door), hot, stopped=lambda: False)
    line = b'{"role":"user","content":"today"}\n'
    try:
        # A whole run while the import is open, and one beside its end.
        gate = Gate(line, line)
        importing = asyncio.ensure_future(imported(hybrid, gate))
        await gate.reached.wait()
        assert (await retaining.run(before)).sessions_ended == 0
        gate.may_go_on.set()
        assert (await importing).status_code == 201
        refs = [SessionRef("default", "s")]
        async with PostgresRetention(door).still_idle("default", refs, before=before) as kept:
            assert list(kept) == []
    finally:
        await door.close()
        await redis_door.close()
    await flush(hybrid_only)
    assert await contents(hybrid) == ["today", "today"]


async def test_a_time_finer_than_a_millisecond_is_found_from_itself_on(api):
    at = "2020-01-01T00:00:00.000400Z"
    line = msgspec.json.encode({"role": "user", "content": "x", "created_at": at}) + b"\n"
    assert (await imported(api, line)).status_code == 201
    items = (await api.http.get(f"{MESSAGES}?from={at}")).json()["items"]
    assert [item["created_at"] for item in items] == [at]


async def test_a_key_whose_session_was_deleted_imports_again(api, settings):
    for _ in range(2):
        done = await imported(api, lines(2), key="k")
        assert (done.status_code, done.headers.get("Idempotency-Replayed")) == (201, None)
        await flush(settings)
        assert await contents(api) == texts(0, 1)
        assert (await api.http.delete("/v1/sessions/s")).status_code == 204
        await flush(settings)


async def test_whose_a_session_became_beside_an_import_it_stays(api, settings):
    gate = Gate(lines(1), lines(1, first=1))
    importing = asyncio.ensure_future(imported(api, gate, user_id="bob"))
    await gate.reached.wait()
    await say(api, "hers", user_id="ada")
    gate.may_go_on.set()
    refused(await importing, 404, "not_found")
    await flush(settings)
    assert await contents(api) == ["hers"]
    for user_id, found in (("ada", 1), ("bob", 0)):
        items = (await api.http.get("/v1/messages", params={"user_id": user_id})).json()["items"]
        assert len(items) == found


async def test_nobody_becomes_the_owner_while_an_import_is_committed(
    hybrid, hybrid_only, monkeypatch
):
    reserve, seen = RedisHealing.reserve, list[int]()

    async def then_others_come(*arguments: Any, **named: Any) -> bool:
        assert await reserve(*arguments, **named)
        said = {"messages": [{"role": "user", "content": "x"}]}
        for path, body in (
            (MESSAGES, said | {"user_id": "ada"}),
            ("/v1/sessions", {"id": "s", "user_id": "ada"}),
            (MESSAGES, said),
            (MESSAGES, said | {"user_id": "bob"}),
        ):
            answer = await hybrid.http.post(path, json=body)
            seen.append(answer.status_code)
            assert answer.status_code == 201 or answer.json()["retryable"]
        return True

    monkeypatch.setattr(RedisHealing, "reserve", then_others_come)
    assert (await imported(hybrid, lines(1), user_id="bob")).status_code == 201
    # Nobody knows for a moment whose the session is.
    assert seen == [503, 503, 201, 503]
    for _ in range(2):
        assert await contents(hybrid) == ["0", "x"]
        assert (await hybrid.http.get("/v1/sessions/s")).json()["user_id"] == "bob"
        await flush(hybrid_only)
    # A session that comes after it is another one.
    assert (await hybrid.http.delete("/v1/sessions/s")).status_code == 204
    await say(hybrid, "hers", user_id="ada")


async def test_messages_above_an_unflushed_clear_refuse_an_import_at_once(hybrid, monkeypatch):
    async def not_to_be_waited_for(*_: Any, **__: Any) -> None:
        raise AssertionError("waited")

    await say(hybrid, "old")
    await hybrid.http.delete(MESSAGES)
    await say(hybrid, "new")
    monkeypatch.setattr(ArchiveWaits, "until_archived", not_to_be_waited_for)
    refused(await imported(hybrid, lines(1)), 412, "precondition_failed")


async def test_an_import_that_was_given_up_in_its_commit_is_healed(hybrid, monkeypatch):
    leave, finish = Transaction.__aexit__, PostgresRun.finish

    async def committed_and_given_up(*arguments: Any) -> None:
        await leave(*arguments)
        if finished:
            finished.clear()
            raise asyncio.CancelledError

    async def finding_nothing(*arguments: Any, **named: Any) -> None:
        await finish(*arguments, **named)
        # Known to be empty from here on.
        await hybrid.http.get("/history/s")
        finished.append(True)

    finished: list[bool] = []
    monkeypatch.setattr(Transaction, "__aexit__", committed_and_given_up)
    monkeypatch.setattr(PostgresRun, "finish", finding_nothing)
    refused(await imported(hybrid, lines(3)), 503, "draining")
    monkeypatch.undo()
    assert len((await hybrid.http.get("/history/s")).json()["messages"]) == 3


@pytest.mark.parametrize("path", ["/v1/sessions/s", MESSAGES])
@pytest.mark.parametrize("late", [False, True])
async def test_whose_a_session_is_that_was_cleared_or_deleted_beside_an_import(
    hybrid, hybrid_only, monkeypatch, path, late
):
    reserve = RedisHealing.reserve

    async def forgotten_about_then(*arguments: Any, **named: Any) -> bool:
        if not late:
            assert (await hybrid.http.delete(path)).status_code == 204
        reserved = await reserve(*arguments, **named)
        if late:
            # Nobody knows for a moment whether there is something to forget.
            assert (await hybrid.http.delete(path)).status_code == 503
        return reserved

    gate = Gate(lines(1), lines(1, first=1))
    importing = asyncio.ensure_future(imported(hybrid, gate, user_id="bob"))
    await gate.reached.wait()
    await say(hybrid, "beside")
    monkeypatch.setattr(RedisHealing, "reserve", forgotten_about_then)
    gate.may_go_on.set()
    assert (await importing).status_code == 201
    if late:
        assert (await hybrid.http.delete(path)).status_code == 204
    # Cleared it is bob's, and deleted it is nobody's.
    for _ in range(2):
        hers = {"messages": [{"role": "user", "content": "hers"}], "user_id": "ada"}
        status = (await hybrid.http.post(MESSAGES, json=hers)).status_code
        assert status == (404 if path == MESSAGES else 201)
        await flush(hybrid_only)
    found = (await hybrid.http.get("/v1/messages?user_id=ada")).json()["items"]
    assert len(found) == (0 if path == MESSAGES else 2)
    owner = (await hybrid.http.get("/v1/sessions/s")).json()["user_id"]
    assert owner == ("bob" if path == MESSAGES else "ada")


async def test_what_was_said_beside_an_import_that_names_a_user_is_that_users(api, settings):
    gate = Gate(lines(1), lines(1, first=1))
    importing = asyncio.ensure_future(imported(api, gate, user_id="ada"))
    await gate.reached.wait()
    await say(api, "beside")
    await flush(settings)
    gate.may_go_on.set()
    assert (await importing).status_code == 201
    await flush(settings)
    found = (await api.http.get("/v1/messages?q=beside&user_id=ada")).json()["items"]
    assert len(found) == 1


async def test_a_refused_import_leaves_a_hot_session_as_it_is(hybrid, hybrid_only, monkeypatch):
    await hybrid.http.get("/history/s")
    last_id = (await say(hybrid, "one")).json()["messages"][0]["id"]
    await flush(hybrid_only)
    assert await contents(hybrid) == ["one"]

    @asynccontextmanager
    async def away(_: PostgresDoor) -> AsyncGenerator[None]:
        raise ArchiveUnavailable("The archive is away.")
        yield

    for key in (None, "k"):
        monkeypatch.setattr(PostgresDoor, "connection", away)
        status = (await imported(hybrid, lines(1), key=key)).status_code
        assert status == (503 if key else 412)
        assert await contents(hybrid) == ["one"]
        monkeypatch.undo()
        problem = refused(await imported(hybrid, lines(1), key=key), 412, "precondition_failed")
        assert problem["last_id"] == last_id


@pytest.mark.parametrize("content", ["\u4e2d\u6587" * 650, "\ufdfa" * 1300])
async def test_an_import_lets_others_have_their_turn(api, content):
    longest, last = 0.0, time.perf_counter()

    async def others() -> None:
        nonlocal longest, last
        while True:
            now = time.perf_counter()
            longest, last = max(longest, now - last), now
            await asyncio.sleep(0)

    line = msgspec.json.encode({"role": "user", "content": content[:300]}) + b"\n"
    beside = asyncio.ensure_future(others())
    try:
        assert (await imported(api, line * 4000)).status_code == 201
    finally:
        beside.cancel()
    # Of some ten milliseconds' work on a machine that does other things too.
    assert longest < 0.4


async def test_a_time_from_before_2004_is_found_from_itself_on(api):
    at = next(
        moment
        for n in range(4000)
        if math.ceil((moment := EDGE + n * MILLISECOND).timestamp() * 1000)
        != -((EPOCH - moment) // MILLISECOND)
    )
    line = msgspec.json.encode({"role": "user", "content": "x", "created_at": at}) + b"\n"
    assert (await imported(api, line)).status_code == 201
    for path in (MESSAGES, "/v1/messages"):
        items = (await api.http.get(path, params={"from": at.isoformat()})).json()["items"]
        assert len(items) == 1


async def test_retention_ends_no_session_whose_news_were_archived_and_evicted(
    hybrid, hybrid_only, database_url, redis_url
):
    await hybrid.http.post("/v1/sessions", json={"id": "s", "user_id": "ada"})
    await flush(hybrid_only)
    [listed] = (await hybrid.http.get("/v1/sessions")).json()["items"]
    born = datetime.fromisoformat(listed["updated_at"])
    before = first_id_at(round(born.timestamp() * 1000) + 1)
    door = PostgresDoor(database_url, ArchiveLimits(), name="test", observer=Recorder())
    redis_door = RedisDoor(redis_url, HotLimits())
    hot = RedisRetention(redis_door, session_arguments(hybrid_only, archived=True))
    async with Redis.from_url(redis_url, protocol=2) as redis:
        await redis.flushdb()
        refs = [SessionRef("default", "s")]
        async with PostgresRetention(door).still_idle("default", refs, before=before) as kept:
            assert list(kept) == refs
            await say(hybrid, "today")
            flushing = asyncio.ensure_future(flush(hybrid_only))
            # Where it is archived meanwhile it may be evicted too.
            await asyncio.wait([flushing], timeout=0.3)
            if flushing.done():
                await redis.delete(*[key async for key in redis.scan_iter("*:head:*")])
            assert await hot.end(kept, before=before) == 0
        await flushing
    await door.close()
    await redis_door.close()
    await flush(hybrid_only)
    assert await contents(hybrid) == ["today"]


async def test_a_receipt_counts_the_records_of_imports_whoever_is_faster(
    hybrid, hybrid_only, monkeypatch
):
    erase = PostgresArchiveErasure.erase

    async def after_a_flush(*arguments: Any) -> Any:
        await flush(hybrid_only)
        return await erase(*arguments)

    for faster in (False, True):
        done = await imported(hybrid, lines(3), key="k", user_id="ada")
        assert (done.status_code, done.headers.get("Idempotency-Replayed")) == (201, None)
        if faster:
            monkeypatch.setattr(PostgresArchiveErasure, "erase", after_a_flush)
        erasing = asyncio.ensure_future(hybrid.http.delete("/v1/users/ada"))
        if not faster:
            # Until it waits for the archive.
            await asyncio.wait([erasing], timeout=0.2)
            await flush(hybrid_only)
        erased = (await erasing).json()["erased"]
        found = [erased[name] for name in ("archive_messages", "idempotency_records")]
        assert found == [3, 1], faster
