"""Each hot query finds its rows by an index, whatever the table's size."""

from collections.abc import AsyncGenerator
from datetime import date
from typing import Any, LiteralString

import asyncpg
import pytest

from service.adapters.postgres import (
    archive,
    counters,
    erasing,
    imports,
    profiles,
    retention,
    search,
    writer,
)
from service.adapters.postgres.keys import session_key
from service.domain.ids import HIGHEST_ID, ZERO_ID
from service.ports import SearchQuery
from tests.support.stores import ref

KEY = session_key(ref())
PLACE = (KEY, "default")
DAYS = (date(2026, 1, 1), date(2026, 1, 8))
BOUNDS = (ZERO_ID, HIGHEST_ID)

SORTS_A_FEW = {archive.OF_USER, erasing.FOLD_COUNTS, erasing.FOLD_ACTIVE, retention.OLD}

# Sessions of ten messages, and a long one: enough that any scan or sort is dearer than the index.
FILL = f"""
INSERT INTO sessions (session_key, tenant, session_id, user_id, born_id, active_id)
SELECT gen_random_uuid(), 'default', n::text, 'u' || n % 500, gen_random_uuid(), gen_random_uuid()
FROM generate_series(1, 5000) AS n;
INSERT INTO messages (session_key, id, tenant, role, body, user_id, words)
SELECT s.session_key, gen_random_uuid(), 'default',
       CASE WHEN n = 1 THEN 'system' ELSE 'user' END, '{{"role": "user", "content": "x"}}'::json,
       s.user_id, (CASE WHEN n = 7 AND s.user_id = 'u7' THEN 'needle ' ELSE '' END || 'x')::tsvector
FROM sessions s, generate_series(1, 10) AS n
UNION ALL
SELECT '{KEY}', gen_random_uuid(), 'default',
       CASE WHEN n % 100 = 1 THEN 'system' ELSE 'user' END,
       '{{"role": "user", "content": "x"}}'::json, NULL, 'x'::tsvector
FROM generate_series(1, 20000) AS n;
INSERT INTO profiles (tenant, user_id, version, document, updated_at)
SELECT 'default', 'u' || n, gen_random_uuid(), '{{}}'::json, now()
FROM generate_series(1, 2000) AS n;
ANALYZE profiles;
INSERT INTO daily_counts (tenant, day, user_id, model, slot, messages)
SELECT 'default', '2025-01-01'::date + n % 500, 'u' || n / 500, '', 0, 1
FROM generate_series(1, 30000) AS n;
INSERT INTO active_sessions (tenant, day, user_id, model, session_key)
SELECT 'default', '2025-01-01'::date + n % 500, 'u' || n / 500, '', gen_random_uuid()
FROM generate_series(1, 30000) AS n;
ANALYZE daily_counts;
ANALYZE active_sessions;
ANALYZE sessions;
ANALYZE messages;
"""


def found(statement: LiteralString, **conditions: Any) -> str:
    """A statement of the search with its conditions."""
    query = SearchQuery(tenant="default", limit=50, **conditions)
    first = {search.FIND: 5, search.WALK: 7, search.WALKED: 5, search.COLLECT: 6}[statement]
    return search.with_conditions(statement, query, first=first)[0]


@pytest.fixture(scope="module")
async def filled(postgres) -> AsyncGenerator[asyncpg.Connection]:
    async with postgres.database(migrated=True) as url:
        connection = await asyncpg.connect(url)
        await connection.execute(FILL)
        yield connection
        await connection.close()


@pytest.mark.parametrize(
    ("query", "arguments", "index"),
    [
        (archive.SESSION, PLACE, "sessions_pkey"),
        (archive.PAGE_ASCENDING, (*PLACE, *BOUNDS, 50, None), "messages_pkey"),
        (archive.PAGE_DESCENDING, (*PLACE, *BOUNDS, 50, None), "messages_pkey"),
        (archive.PINNED, (*PLACE, *BOUNDS, 50), "messages_pinned"),
        (archive.LIST, ("default", HIGHEST_ID, 50), "sessions_by_activity"),
        (archive.LIST_OF_USER, ("default", HIGHEST_ID, 50, "u7"), "sessions_by_user"),
        *(
            (statement, ("default", *DAYS, "u7", 100), "daily_counts_pkey")
            for statement in counters.STATEMENTS.values()
        ),
        (profiles.GET, ("default", "u7"), "profiles_pkey"),
        (writer.CLAIM_MESSAGES, ([KEY],), "messages_pkey"),
        (imports.COUNT_THROUGH, (*PLACE, *BOUNDS), "messages_pkey"),
        (archive.OF_USER, ("default", "u7", ZERO_ID, 200), "sessions_by_user"),
        (erasing.DELETE_RECORDS, PLACE, "calls_pkey"),
        (erasing.STANDING, PLACE, "sessions_pkey"),
        (erasing.COUNTED_DAYS, ("default", "u7"), "daily_counts_pkey"),
        (erasing.TAKE_NOBODYS, ("default", DAYS[0], "u7"), "daily_counts_pkey"),
        (erasing.FOLD_COUNTS, ("default", DAYS[0], "u7"), "daily_counts_pkey"),
        (erasing.FOLD_ACTIVE, ("default", DAYS[0], "u7"), "active_sessions_pkey"),
        (retention.NEXT_TENANT, ("a",), "sessions_by_"),
        (retention.OLD, ("default", HIGHEST_ID, 50), "messages_by_time"),
        (retention.CUT, ([KEY], [HIGHEST_ID], "default"), "messages_pkey"),
        (retention.IDLE, ("default", HIGHEST_ID, ZERO_ID, 50), "sessions_by_activity"),
        (retention.END, ([KEY], "default", HIGHEST_ID), "sessions_pkey"),
        (retention.STILL_IDLE, ([KEY], "default", HIGHEST_ID), "sessions_pkey"),
        (writer.LOCK_SESSIONS, ([KEY],), "sessions_pkey"),
        (writer.FORGET, ([KEY], [HIGHEST_ID], [False]), "messages_pkey"),
    ],
)
async def test_a_hot_query_uses_its_index(filled, query, arguments, index):
    rows = await filled.fetch(f"EXPLAIN {query}", *arguments)
    plan = "\n".join(row[0] for row in rows)
    assert index in plan, plan
    assert "Seq Scan" not in plan, plan
    # What is sorted there is bounded: a batch, or what is one user's.
    bounded = index in {"sessions_pkey", "daily_counts_pkey"} or query in SORTS_A_FEW
    assert "Sort" not in plan or bounded, plan
