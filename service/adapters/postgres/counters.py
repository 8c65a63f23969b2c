"""Counters of what was archived, grown in the transaction that archives it."""

from typing import Final, LiteralString
from uuid import UUID

from service.adapters.postgres.door import Connection, PostgresDoor
from service.domain.statistics import ITEMS_MAX, Counted, Item, Place
from service.ports import StatisticsQuery

SLOTS: Final = 16
"""Rows that share the counts of messages without a user, so that their writers seldom meet."""

# In the order of the key, so that two transactions never wait for each other in a circle; last in a
# transaction, so that they wait little.
COUNT: Final[LiteralString] = """
INSERT INTO daily_counts AS c
    (tenant, day, user_id, model, slot, messages, turns, input_tokens, output_tokens)
SELECT * FROM unnest($1::text[], $2::date[], $3::text[], $4::text[], $5::smallint[], $6::bigint[],
                     $7::bigint[], $8::bigint[], $9::bigint[])
ON CONFLICT (tenant, day, user_id, model, slot) DO UPDATE
SET messages = c.messages + EXCLUDED.messages,
    turns = c.turns + EXCLUDED.turns,
    input_tokens = c.input_tokens + EXCLUDED.input_tokens,
    output_tokens = c.output_tokens + EXCLUDED.output_tokens
"""

ACTIVE: Final[LiteralString] = """
INSERT INTO active_sessions (tenant, day, user_id, model, session_key)
SELECT * FROM unnest($1::text[], $2::date[], $3::text[], $4::text[], $5::uuid[])
ON CONFLICT DO NOTHING
"""

# One statement for each key; sessions are counted once in a key, whatever their days and models.
BY_DAY: Final[LiteralString] = """
SELECT to_char(c.day, 'YYYY-MM-DD') AS key, c.messages, c.turns, c.input_tokens, c.output_tokens,
       COALESCE(a.sessions, 0) AS sessions
FROM (
    SELECT day, sum(messages)::bigint AS messages, sum(turns)::bigint AS turns,
           sum(input_tokens)::bigint AS input_tokens, sum(output_tokens)::bigint AS output_tokens
    FROM daily_counts
    WHERE tenant = $1 AND day >= $2 AND day < $3 AND ($4::text IS NULL OR user_id = $4)
    GROUP BY day
) c LEFT JOIN (
    SELECT day, count(DISTINCT session_key) AS sessions
    FROM active_sessions
    WHERE tenant = $1 AND day >= $2 AND day < $3 AND ($4::text IS NULL OR user_id = $4)
    GROUP BY day
) a USING (day)
ORDER BY c.day
LIMIT $5
"""

BY_WEEK: Final[LiteralString] = """
SELECT c.key, c.messages, c.turns, c.input_tokens, c.output_tokens,
       COALESCE(a.sessions, 0) AS sessions
FROM (
    SELECT to_char(day, 'IYYY-"W"IW') AS key, sum(messages)::bigint AS messages,
           sum(turns)::bigint AS turns, sum(input_tokens)::bigint AS input_tokens,
           sum(output_tokens)::bigint AS output_tokens
    FROM daily_counts
    WHERE tenant = $1 AND day >= $2 AND day < $3 AND ($4::text IS NULL OR user_id = $4)
    GROUP BY 1
) c LEFT JOIN (
    SELECT to_char(day, 'IYYY-"W"IW') AS key, count(DISTINCT session_key) AS sessions
    FROM active_sessions
    WHERE tenant = $1 AND day >= $2 AND day < $3 AND ($4::text IS NULL OR user_id = $4)
    GROUP BY 1
) a USING (key)
ORDER BY c.key
LIMIT $5
"""

BY_USER: Final[LiteralString] = """
SELECT NULLIF(c.user_id, '') AS key, c.messages, c.turns, c.input_tokens, c.output_tokens,
       COALESCE(a.sessions, 0) AS sessions
FROM (
    SELECT user_id, sum(messages)::bigint AS messages, sum(turns)::bigint AS turns,
           sum(input_tokens)::bigint AS input_tokens, sum(output_tokens)::bigint AS output_tokens
    FROM daily_counts
    WHERE tenant = $1 AND day >= $2 AND day < $3 AND ($4::text IS NULL OR user_id = $4)
    GROUP BY user_id
) c LEFT JOIN (
    SELECT user_id, count(DISTINCT session_key) AS sessions
    FROM active_sessions
    WHERE tenant = $1 AND day >= $2 AND day < $3 AND ($4::text IS NULL OR user_id = $4)
    GROUP BY user_id
) a USING (user_id)
ORDER BY c.messages DESC, c.user_id COLLATE "C"
LIMIT $5
"""

BY_MODEL: Final[LiteralString] = """
SELECT NULLIF(c.model, '') AS key, c.messages, c.turns, c.input_tokens, c.output_tokens,
       COALESCE(a.sessions, 0) AS sessions
FROM (
    SELECT model, sum(messages)::bigint AS messages, sum(turns)::bigint AS turns,
           sum(input_tokens)::bigint AS input_tokens, sum(output_tokens)::bigint AS output_tokens
    FROM daily_counts
    WHERE tenant = $1 AND day >= $2 AND day < $3 AND ($4::text IS NULL OR user_id = $4)
    GROUP BY model
) c LEFT JOIN (
    SELECT model, count(DISTINCT session_key) AS sessions
    FROM active_sessions
    WHERE tenant = $1 AND day >= $2 AND day < $3 AND ($4::text IS NULL OR user_id = $4)
    GROUP BY model
) a USING (model)
ORDER BY c.messages DESC, c.model COLLATE "C"
LIMIT $5
"""

STATEMENTS: Final = {"day": BY_DAY, "week": BY_WEEK, "user": BY_USER, "model": BY_MODEL}


class PostgresStatistics:
    """Statistics from the counters."""

    def __init__(self, door: PostgresDoor) -> None:
        self._door = door

    async def items(self, query: StatisticsQuery) -> list[Item]:
        async with self._door.connection() as connection:
            rows = await connection.fetch(
                STATEMENTS[query.by],
                query.tenant,
                query.first,
                query.end,
                query.user_id,
                ITEMS_MAX + 1,
            )
        return [
            Item(
                key=row["key"],
                messages=row["messages"],
                turns=row["turns"],
                input_tokens=row["input_tokens"],
                output_tokens=row["output_tokens"],
                active_sessions=row["sessions"],
            )
            for row in rows
        ]


async def grow_counters(connection: Connection, counts: dict[Place, Counted]) -> None:
    """Add what was really inserted, at the end of its transaction."""
    if not counts:
        return
    sums: dict[tuple[object, ...], Counted] = {}
    for place, counted in counts.items():
        slot = 0 if place.user_id else UUID(place.session_key).int % SLOTS
        key = (place.tenant, place.day, place.user_id, place.model, slot)
        total = sums.setdefault(key, Counted())
        total.messages += counted.messages
        total.turns += counted.turns
        total.input_tokens += counted.input_tokens
        total.output_tokens += counted.output_tokens
    rows = sorted(sums.items())
    columns = [list(column) for column in zip(*(key for key, _ in rows), strict=True)]
    await connection.execute(
        COUNT,
        *columns,
        [total.messages for _, total in rows],
        [total.turns for _, total in rows],
        [total.input_tokens for _, total in rows],
        [total.output_tokens for _, total in rows],
    )
    places = sorted(counts)
    await connection.execute(
        ACTIVE,
        [place.tenant for place in places],
        [place.day for place in places],
        [place.user_id for place in places],
        [place.model for place in places],
        [place.session_key for place in places],
    )
