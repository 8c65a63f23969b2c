"""Looking through the messages of a tenant, newest first, by whatever index fits best."""

from typing import Any, Final, LiteralString

import asyncpg

from service.adapters.postgres.door import Connection, PostgresDoor
from service.adapters.postgres.keys import session_key
from service.domain.ids import HIGHEST_ID, ZERO_ID, MessageId, last_id_before
from service.domain.messages import decode_messages, with_id
from service.domain.sessions import SessionRef
from service.domain.words import as_tsquery
from service.ports import Clock, FoundMessage, SearchQuery

# Conditions of the query stand in the place of {}: never values, which are all arguments. The rows
# are chosen before their sessions are looked up.
FIND: Final[LiteralString] = """
SELECT f.id, f.body, s.session_id
FROM (
    SELECT id, body, session_key
    FROM messages
    WHERE tenant = $1 AND id > $2 AND id < $3 {}
    ORDER BY id DESC
    LIMIT $4
) f JOIN sessions s ON s.session_key = f.session_key
ORDER BY f.id DESC
"""

# Newest first through so many rows, whatever the words: quick for words that are said often.
WALK: Final[LiteralString] = """
SELECT f.id, f.body, s.session_id
FROM (
    SELECT id, body, session_key
    FROM (
        SELECT id, body, session_key, words
        FROM messages
        WHERE tenant = $1 AND id > $2 AND id < $3 {}
        ORDER BY id DESC
        LIMIT $5
    ) newest
    WHERE words @@ $6::text::tsquery
    ORDER BY id DESC
    LIMIT $4
) f JOIN sessions s ON s.session_key = f.session_key
ORDER BY f.id DESC
"""

# Where such a walk ended; no row where it came to the end of what there is.
WALKED: Final[LiteralString] = """
SELECT id
FROM messages
WHERE tenant = $1 AND id > $2 AND id < $3 {}
ORDER BY id DESC
OFFSET $4 - 1
LIMIT 1
"""

# By the index of words: quick for words that are said seldom. All that has them is collected first,
# or the planner would walk on in the hope of finding a page soon.
COLLECT: Final[LiteralString] = """
WITH hits AS MATERIALIZED (
    SELECT session_key, id
    FROM messages
    WHERE words @@ $5::text::tsquery AND tenant = $1 AND id > $2 AND id < $3 {}
)
SELECT f.id, m.body, s.session_id
FROM (SELECT session_key, id FROM hits ORDER BY id DESC LIMIT $4) f
JOIN messages m ON m.session_key = f.session_key AND m.id = f.id
JOIN sessions s ON s.session_key = f.session_key
ORDER BY f.id DESC
"""

OF_SESSION: Final[LiteralString] = "AND session_key = ${}"
OF_USER: Final[LiteralString] = "AND user_id = ${}"
OF_ROLE: Final[LiteralString] = "AND role = ${}"

WALK_ROWS: Final = 20_000
"""Some milliseconds; words that do not fill a page in so many messages are said seldom."""

# How many rows a condition leaves decides which index is best: no plan is good for all values.
PLAN_EACH: Final[LiteralString] = "SET LOCAL plan_cache_mode = force_custom_plan"


class PostgresSearch:
    """Search in PostgreSQL."""

    def __init__(self, door: PostgresDoor, clock: Clock, *, call_seconds: float) -> None:
        self._door = door
        self._clock = clock
        self._call_milliseconds = round(call_seconds * 1000)

    async def find(self, query: SearchQuery) -> list[FoundMessage]:
        async with self._door.snapshot() as connection:
            await connection.execute(PLAN_EACH)
            rows = await find_rows(connection, query)
        messages = decode_messages([with_id(str(row["id"]), row["body"]) for row in rows])
        return [
            FoundMessage(session_id=row["session_id"], message=message)
            for row, message in zip(rows, messages, strict=True)
        ]

    async def archived_through(self) -> MessageId | None:
        """Where PostgreSQL holds everything: what began longer ago than any call takes.

        An append chooses its ids before its commit, and may wait in between.
        """
        return last_id_before(self._clock.milliseconds() - self._call_milliseconds)


async def find_rows(connection: Connection, query: SearchQuery) -> list[asyncpg.Record]:
    """The query's rows, newest first."""
    place = [query.tenant, query.after or ZERO_ID, query.before or HIGHEST_ID]
    if query.words is None:
        statement, values = with_conditions(FIND, query, first=5)
        return await connection.fetch(statement, *place, query.limit, *values)

    words = as_tsquery(query.words)
    statement, values = with_conditions(WALK, query, first=7)
    rows = await connection.fetch(statement, *place, query.limit, WALK_ROWS, words, *values)
    if len(rows) == query.limit:
        return rows
    statement, values = with_conditions(WALKED, query, first=5)
    reached = await connection.fetchval(statement, *place, WALK_ROWS, *values)
    if reached is None:
        return rows
    place[2] = str(reached)
    statement, values = with_conditions(COLLECT, query, first=6)
    missing = query.limit - len(rows)
    return [*rows, *await connection.fetch(statement, *place, missing, words, *values)]


def with_conditions(
    statement: LiteralString, query: SearchQuery, *, first: int
) -> tuple[str, list[Any]]:
    """The whole statement and the values of its conditions, the first of which is ``$first``."""
    key = None
    if query.session_id is not None:
        key = session_key(SessionRef(query.tenant, query.session_id))
    conditions: list[str] = []
    values: list[Any] = []
    for condition, value in (
        (OF_SESSION, key),
        (OF_USER, query.user_id),
        (OF_ROLE, query.role),
    ):
        if value is not None:
            conditions.append(condition.format(first + len(values)))
            values.append(value)
    return statement.format(" ".join(conditions)), values
