"""Search at a million messages: which index each form takes, and how long it takes.

Run by hand: ``python -m tests.bench.bench_search``. Fills a PostgreSQL of its own (some minutes),
asks every form several times, and fails where a form reads the whole table or takes too long.
"""

import asyncio
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import asyncpg

from service.adapters.postgres.migrations import Migrator
from service.adapters.postgres.search import PLAN_EACH, find_rows
from service.dev.postgres import EmbeddedPostgres
from service.domain.ids import message_id, random_bits
from service.domain.words import as_vector, parse_query, words_of
from service.ports import SearchQuery

MESSAGES = 1_000_000
SESSIONS = 20_000
USERS = 2_000
START = 1_750_000_000_000
SPACING_MILLISECONDS = 30_000
REPEATS = 7
MILLISECONDS_MAX = 500.0
ROOT = Path(__file__).parents[2]

HAN = "".join(chr(0x4E00 + n * 37 % 6000) for n in range(800))
COMMON = ["the", "and", "please", "order", "time", "help", "thanks", "account", "hello", "today"]


def text_of(choose: random.Random, number: int) -> str:
    """A fifth in Han characters; one message in 50,000 has a rare word of each kind."""
    if number % 5 == 0:
        text = "".join(choose.choices(HAN, k=60))
        return text + ("稀有搜索" if number % 50_000 == 0 else "")
    words = [*choose.choices(COMMON, k=12), *(f"word{choose.randrange(50_000)}" for _ in range(18))]
    if number % 50_000 == 1:
        words.append("needle")
    choose.shuffle(words)
    return " ".join(words)


async def fill(connection: asyncpg.Connection) -> None:
    choose = random.Random(7)
    sessions = [(f"00000000-0000-0000-0000-{n:012x}", f"u{n % USERS}") for n in range(SESSIONS)]
    low, high = message_id(START, 0, 0), message_id(START + MESSAGES * SPACING_MILLISECONDS, 0, 0)
    await connection.copy_records_to_table(
        "sessions",
        records=[("default", key, key, user, low, high) for key, user in sessions],
        columns=["tenant", "session_key", "session_id", "user_id", "born_id", "active_id"],
    )
    for start in range(0, MESSAGES, 20_000):
        rows: list[tuple[object, ...]] = []
        for number in range(start, start + 20_000):
            key, user = choose.choice(sessions)
            text = text_of(choose, number)
            identity = message_id(START + number * SPACING_MILLISECONDS, 0, random_bits())
            role = "system" if number % 997 == 0 else "user" if number % 2 else "assistant"
            body = f'{{"role":"{role}","content":"{text}"}}'
            rows.append((key, identity, role, body, user, as_vector(words_of(text))))
        await connection.execute(
            "INSERT INTO messages (session_key, id, tenant, role, body, user_id, words) "
            "SELECT k, i, 'default', r, b, u, w::tsvector FROM unnest($1::uuid[], $2::uuid[], "
            "$3::text[], $4::json[], $5::text[], $6::text[]) AS m (k, i, r, b, u, w)",
            *map(list, zip(*rows, strict=True)),
        )
        print(f"\r{start + 20_000:,} messages", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    await connection.execute("VACUUM ANALYZE messages")
    await connection.execute("VACUUM ANALYZE sessions")


def forms() -> dict[str, SearchQuery]:
    def query(q: str | None = None, **fields) -> SearchQuery:
        words = parse_query(q, "q") if q else None
        return SearchQuery(tenant="default", limit=51, words=words, **fields)

    middle = message_id(START + MESSAGES // 2 * SPACING_MILLISECONDS, 0, 0)
    later = message_id(START + (MESSAGES // 2 + 2000) * SPACING_MILLISECONDS, 0, 0)
    session = f"00000000-0000-0000-0000-{77:012x}"
    rare = "稀有搜索"
    return {
        "everything": query(),
        "deep cursor": query(before=middle),
        "range of time": query(after=middle, before=later),
        "role, common": query(role="user"),
        "role, rare": query(role="system"),
        "role that nobody has": query(role="tool"),
        "session": query(session_id=session),
        "session and role": query(session_id=session, role="user"),
        "user": query(user_id="u7"),
        "user and role": query(user_id="u7", role="system"),
        "user and range": query(user_id="u7", after=middle, before=later),
        "word, in every second message": query("please"),
        "word, in 400 messages": query("word777"),
        "word, in 20 messages": query("needle"),
        "word that nobody said": query("absent"),
        "two common words": query("please thanks"),
        "common and rare word": query("please needle"),
        "common word, deep cursor": query("please", before=middle),
        "rare word, range of time": query("needle", after=middle, before=later),
        "one character": query(HAN[5]),
        "one rare character": query(rare[0]),
        "two characters": query(rare[:2]),
        "three characters": query(rare[:3]),
        "four characters": query(rare),
        "common word of a user": query("please", user_id="u7"),
        "rare word of a user": query("needle", user_id="u7"),
        "word in a session": query("please", session_id=session),
        "word and role": query("word777", role="assistant"),
    }


class Explaining:
    """A connection that asks for the plan of every statement as well."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection
        self.plans: list[str] = []

    async def fetch(self, statement: str, *arguments: object) -> list[asyncpg.Record]:
        await self._explain(statement, *arguments)
        return await self._connection.fetch(statement, *arguments)

    async def fetchval(self, statement: str, *arguments: object) -> object:
        await self._explain(statement, *arguments)
        return await self._connection.fetchval(statement, *arguments)

    async def _explain(self, statement: str, *arguments: object) -> None:
        rows = await self._connection.fetch(f"EXPLAIN {statement}", *arguments)
        self.plans.append("\n".join(row[0] for row in rows))


async def measure(connection: asyncpg.Connection, query: SearchQuery) -> tuple[str, float, int]:
    times: list[float] = []
    rows: list[asyncpg.Record] = []
    explaining: Any = Explaining(connection)
    async with connection.transaction():
        await connection.execute(PLAN_EACH)
        await find_rows(explaining, query)
        direct: Any = connection
        for _ in range(REPEATS):
            started = time.perf_counter()
            rows = await find_rows(direct, query)
            times.append(time.perf_counter() - started)
    plan = "\n".join(explaining.plans)
    if "Seq Scan on messages" in plan:
        raise SystemExit(f"reads the whole table:\n{plan}")
    names = ("messages_pkey", "messages_by_time", "messages_by_user", "messages_by_word")
    used = " + ".join(name for name in names if name in plan)
    return used, 1000 * statistics.median(times), len(rows)


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        server = EmbeddedPostgres(Path(folder) / "postgres", durable=False)
        await server.start()
        try:
            await Migrator(server.url, ROOT / "migrations").up()
            connection = await asyncpg.connect(server.url)
            await connection.set_type_codec(
                "json", schema="pg_catalog", encoder=str, decoder=str, format="text"
            )
            await fill(connection)
            slow: list[str] = []
            for name, query in forms().items():
                used, milliseconds, rows = await measure(connection, query)
                print(f"| {name} | {used} | {milliseconds:.1f} | {rows} |", flush=True)
                if milliseconds > MILLISECONDS_MAX:
                    slow.append(name)
            await connection.close()
        finally:
            await server.stop()
    if slow:
        raise SystemExit(f"too slow: {', '.join(slow)}")


if __name__ == "__main__":
    asyncio.run(main())
