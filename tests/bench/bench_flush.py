"""What search costs the flush: rows a second with and without its columns and indexes.

Run by hand: ``python -m tests.bench.bench_flush``. Both variants write the same batches in turn,
so that whatever else the machine does falls on both; the ratio is what counts.
"""

import asyncio
import random
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final, LiteralString
from unittest import mock

import asyncpg

from service.adapters.postgres import writer
from service.adapters.postgres.door import ArchiveLimits, PostgresDoor
from service.adapters.postgres.migrations import Migrator
from service.adapters.postgres.word_index import WordIndex
from service.adapters.postgres.writer import PostgresArchiveWriter
from service.bootstrap.flushers import WORD_INDEX_PAUSE_SECONDS
from service.core.background import Looper
from service.dev.postgres import EmbeddedPostgres
from service.domain.ids import message_id, random_bits
from service.domain.journal import Batch, Entry
from service.domain.messages import MessageBody, encode_body
from service.domain.sessions import SessionRef
from tests.bench.bench_search import text_of
from tests.support.stores import Recorder

BATCH = 1000
BATCHES = 500
ROOT = Path(__file__).parents[2]
START = 1_750_000_000_000

PLAIN_INSERT: Final[LiteralString] = """
INSERT INTO messages (session_key, id, tenant, role, body)
SELECT m.session_key, m.id, s.tenant, m.role, m.body
FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::json[], $5::text[], $6::text[])
  AS m (session_key, id, role, body, user_id, words)
JOIN sessions s USING (session_key)
WHERE m.id > s.cleared_through
ON CONFLICT (session_key, id) DO NOTHING
RETURNING session_key, id
"""


def batch(choose: random.Random, number: int) -> Batch:
    entries: list[Entry] = []
    for place in range(BATCH):
        count = number * BATCH + place
        ref = SessionRef("default", f"s{choose.randrange(5000)}")
        text = text_of(choose, count)
        entries.append(
            Entry(
                position=f"{count}-0",
                kind="message",
                ref=ref,
                id=message_id(START + count, 0, random_bits()),
                user_id=f"u{hash(ref) % 500}",
                role="user",
                body=encode_body(MessageBody(role="user", content=text, token_count=60)),
            )
        )
    return Batch(entries=tuple(entries))


async def no_words(bodies: Iterable[bytes]) -> list[str]:
    return [""] * len(list(bodies))


async def seconds_of(door: PostgresDoor, batches: Batch, *, plain: bool) -> float:
    started = time.perf_counter()
    if plain:
        with (
            mock.patch.object(writer, "INSERT_MESSAGES", PLAIN_INSERT),
            mock.patch.object(writer, "vectors_of", no_words),
        ):
            await PostgresArchiveWriter(door, Recorder()).write(batches)
    else:
        await PostgresArchiveWriter(door, Recorder()).write(batches)
    return time.perf_counter() - started


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        server = EmbeddedPostgres(Path(folder) / "postgres", durable=True, role_options="CREATEDB")
        await server.start()
        try:
            await compare(server.url)
        finally:
            await server.stop()


async def compare(url: str) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute("CREATE DATABASE plain")
    await connection.close()
    urls = {True: url.rpartition("/")[0] + "/plain", False: url}
    doors: dict[bool, PostgresDoor] = {}
    for plain, place in urls.items():
        await Migrator(place, ROOT / "migrations").up()
        doors[plain] = PostgresDoor(
            place, ArchiveLimits(call_seconds=60), name="bench", observer=Recorder()
        )
        if plain:
            connection = await asyncpg.connect(place)
            await connection.execute(
                "DROP INDEX messages_by_word, messages_by_user, messages_by_time"
            )
            await connection.close()
    index = Looper(
        "word-index",
        WordIndex(doors[False]).merge,
        pause_seconds=WORD_INDEX_PAUSE_SECONDS,
        observer=Recorder(),
    )
    await index.start()
    choose, spent = random.Random(7), {True: 0.0, False: 0.0}
    for number in range(BATCHES):
        one = batch(choose, number)
        for plain in (True, False) if number % 2 else (False, True):
            spent[plain] += await seconds_of(doors[plain], one, plain=plain)
        if (number + 1) % 100 == 0:
            rates = {plain: 100 * BATCH / seconds for plain, seconds in spent.items()}
            spent = dict.fromkeys(spent, 0.0)
            print(
                f"| {(number + 1) * BATCH:,} | {rates[True]:,.0f} | {rates[False]:,.0f} | "
                f"{rates[False] / rates[True]:.2f} |",
                flush=True,
            )
    await index.stop()
    for door in doors.values():
        await door.close()


if __name__ == "__main__":
    asyncio.run(main())
