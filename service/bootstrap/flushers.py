"""Opening the flusher behind the hybrid store."""

import secrets
import socket
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

from service.adapters.postgres.word_index import WordIndex
from service.adapters.postgres.writer import PostgresArchiveWriter
from service.adapters.redis.journal import RedisJournal, RedisShardLeases
from service.bootstrap.connections import (
    dead_letters,
    postgres_door,
    redis_door,
    session_arguments,
)
from service.core.background import Looper
from service.core.carrying import Carrier
from service.core.flushing import Flusher, FlushSettings, ShardOwnership
from service.ports import Clock, Observer
from service.settings import Settings

DRAIN_SHARE: Final = 0.25
"""Part of the grace time that is left for the last flush."""
WORD_INDEX_PAUSE_SECONDS: Final = 0.2
"""Between merges of new words into their index."""


@asynccontextmanager
async def open_word_index(settings: Settings, observer: Observer) -> AsyncGenerator[Looper]:
    """What merges new words into their index, on a connection of its own; not started."""
    async with AsyncExitStack() as stack:
        door = postgres_door(settings, stack, observer, name="word-index", connections=1)
        yield Looper(
            "word-index",
            WordIndex(door).merge,
            pause_seconds=WORD_INDEX_PAUSE_SECONDS,
            observer=observer,
        )


@asynccontextmanager
async def open_flusher(
    settings: Settings, *, clock: Clock, observer: Observer
) -> AsyncGenerator[tuple[Flusher, ShardOwnership]]:
    """A flusher with connections of its own, not started."""
    async with AsyncExitStack() as stack:
        arguments = session_arguments(settings, archived=True)
        redis, _ = redis_door(settings, stack, archived=True)
        postgres = postgres_door(settings, stack, observer, name="flusher")
        flush_settings = FlushSettings(
            shards=settings.journal_shards,
            batch_max=settings.flush_batch_max,
            batch_bytes_max=settings.flush_batch_bytes_max,
            drain_seconds=settings.shutdown_grace_seconds * DRAIN_SHARE,
            linger_seconds=settings.flush_linger_milliseconds / 1000,
            lease_seconds=settings.shard_lease_seconds,
        )
        ownership = ShardOwnership(
            RedisShardLeases(redis, arguments.keys, lease_seconds=settings.shard_lease_seconds),
            f"{socket.gethostname()}-{secrets.token_hex(4)}",
            flush_settings,
            clock=clock,
            observer=observer,
        )
        journal = RedisJournal(redis, arguments.keys, arguments.limits)
        flusher = Flusher(
            journal,
            Carrier(
                journal,
                PostgresArchiveWriter(postgres, observer),
                dead_letters(settings, redis, arguments),
                clock=clock,
                observer=observer,
            ),
            ownership,
            flush_settings,
            clock=clock,
            observer=observer,
        )
        yield flusher, ownership
