"""A flusher process that stops for ever between its commit and its trim, to be killed there.

    python -m tests.support.stuck_flusher DATABASE_URL REDIS_URL

Prints "committed" once a batch is in the archive and still in the journal.
"""

import asyncio
import sys

from service.adapters.redis.journal import RedisJournal
from service.bootstrap.ambient import Observers, SystemClock
from service.bootstrap.flushers import open_flusher
from service.domain.journal import Acknowledgement
from service.settings import Settings


async def _never(self: RedisJournal, shard: int, acknowledgement: Acknowledgement) -> bool:
    print("committed", flush=True)  # noqa: T201  # The parent waits for this line.
    await asyncio.Event().wait()
    return False


async def main(database_url: str, redis_url: str) -> None:
    RedisJournal.acknowledge = _never
    settings = Settings(database_url=database_url, redis_url=redis_url, shard_lease_seconds=1.0)
    async with open_flusher(settings, clock=SystemClock(), observer=Observers()) as (flusher, _):
        await flusher.start()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
