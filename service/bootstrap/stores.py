"""Opening the store that STORE names, and the flusher behind it."""

import secrets
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec

from service.adapters.memory.store import SESSION_MESSAGES_MAX, MemoryStore
from service.adapters.memory.transcripts import MemorySessions, MemoryTranscripts
from service.adapters.memory.turns import MemoryTurns
from service.adapters.postgres.archive import PostgresArchive
from service.adapters.postgres.calls import PostgresSweeper
from service.adapters.postgres.door import ArchiveLimits, PostgresDoor
from service.adapters.postgres.health import PostgresProbe
from service.adapters.postgres.migrations import expected_versions
from service.adapters.postgres.sessions import PostgresSessions
from service.adapters.postgres.transcripts import PostgresTranscripts
from service.adapters.postgres.turns import PostgresTurns
from service.adapters.postgres.writer import PostgresArchiveWriter
from service.adapters.redis.client import HotLimits, RedisDoor
from service.adapters.redis.durable import DurableRuns
from service.adapters.redis.health import RedisProbe
from service.adapters.redis.journal import RedisJournal, RedisShardLeases
from service.adapters.redis.keys import Keys
from service.adapters.redis.layout import RedisLayout
from service.adapters.redis.replies import SessionArguments, SessionLimits
from service.adapters.redis.sessions import RedisSessions
from service.adapters.redis.transcripts import RedisTranscripts
from service.adapters.redis.turns import RedisTurns
from service.core.background import Component, Looper
from service.core.flushing import Flusher, FlushSettings, ShardOwnership
from service.core.readiness import Dependency
from service.core.tiered.archiving import ArchiveWaits
from service.core.tiered.sessions import TieredSessions
from service.core.tiered.transcripts import TieredTranscripts
from service.core.tiered.turns import TieredTurns
from service.core.tiered.warming import Warming
from service.ports import Archive, Clock, Journal, Observer, Sessions, Transcripts, Turns
from service.settings import Settings

DRAIN_SHARE: Final = 0.25
"""Part of the grace time that is left for the last flush."""
SWEEP_PAUSE_SECONDS: Final = 10.0
"""Between removals of expired call records and leases."""


async def nothing_to_check() -> str | None:
    return None


class Store(msgspec.Struct, frozen=True, kw_only=True):
    """An open store: its ports, what it depends on, and its queue if it has one."""

    transcripts: Transcripts
    sessions: Sessions
    turns: Turns
    dependencies: tuple[Dependency, ...] = ()
    components: tuple[Component, ...] = ()
    """What has to run beside it, in every process that has it open."""
    journal: Journal | None = None
    check: Callable[[], Awaitable[str | None]] = nothing_to_check
    """Raises where the stores contradict the settings; returns a warning or None."""


def migrations_directory() -> Path:
    """Beside the package in a checkout, inside it where it was installed."""
    installed = Path(__file__).parents[1] / "migrations"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "migrations"


@asynccontextmanager
async def open_store(
    settings: Settings, *, clock: Clock, observer: Observer
) -> AsyncGenerator[Store]:
    """The store that STORE names; closed when the context ends."""
    async with AsyncExitStack() as stack:
        match settings.store:
            case "memory":
                yield _memory_store(settings, clock)
            case "postgres":
                yield _postgres_store(settings, stack, clock, observer)
            case "redis":
                yield _redis_store(settings, stack, observer, archive=None)
            case "hybrid":
                door = _postgres_door(settings, stack, observer, name="api")
                store = _redis_store(settings, stack, observer, archive=PostgresArchive(door))
                away = _postgres_dependencies(door, required=False)
                yield msgspec.structs.replace(store, dependencies=(*store.dependencies, *away))


@asynccontextmanager
async def open_flusher(
    settings: Settings, *, clock: Clock, observer: Observer
) -> AsyncGenerator[tuple[Flusher, ShardOwnership]]:
    """A flusher with connections of its own, not started."""
    async with AsyncExitStack() as stack:
        arguments = _session_arguments(settings, archived=True)
        redis, _ = _redis_door(settings, stack, archived=True)
        postgres = _postgres_door(settings, stack, observer, name="flusher")
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
        flusher = Flusher(
            RedisJournal(redis, arguments.keys, arguments.limits),
            PostgresArchiveWriter(postgres, observer),
            ownership,
            flush_settings,
            clock=clock,
            observer=observer,
        )
        yield flusher, ownership


def _memory_store(settings: Settings, clock: Clock) -> Store:
    store = MemoryStore(
        clock,
        once_seconds=settings.idempotency_ttl_seconds,
        lease_seconds=settings.turn_lease_seconds,
    )
    return Store(
        transcripts=MemoryTranscripts(store),
        sessions=MemorySessions(store),
        turns=MemoryTurns(store),
    )


def _postgres_store(
    settings: Settings, stack: AsyncExitStack, clock: Clock, observer: Observer
) -> Store:
    door = _postgres_door(settings, stack, observer, name="api")
    return Store(
        transcripts=PostgresTranscripts(
            door, clock, observer, once_seconds=settings.idempotency_ttl_seconds
        ),
        sessions=PostgresSessions(door, clock, once_seconds=settings.idempotency_ttl_seconds),
        turns=PostgresTurns(
            door,
            clock,
            once_seconds=settings.idempotency_ttl_seconds,
            lease_seconds=settings.turn_lease_seconds,
        ),
        dependencies=_postgres_dependencies(door, required=True),
        components=(
            Looper(
                "postgres-sweeper",
                PostgresSweeper(door).sweep,
                pause_seconds=SWEEP_PAUSE_SECONDS,
                observer=observer,
            ),
        ),
    )


def _redis_store(
    settings: Settings, stack: AsyncExitStack, observer: Observer, archive: Archive | None
) -> Store:
    """The hot memory in front of an archive, or of none."""
    arguments = _session_arguments(settings, archived=archive is not None)
    door, layout = _redis_door(settings, stack, archived=archive is not None)
    once_seconds = settings.idempotency_ttl_seconds
    durable = DurableRuns(
        door, replicas=settings.redis_wait_replicas, fsync_problem=layout.fsync_problem
    )
    transcripts = RedisTranscripts(door, durable, arguments, once_seconds=once_seconds)
    turns = RedisTurns(
        door,
        durable,
        arguments,
        once_seconds=once_seconds,
        lease_seconds=settings.turn_lease_seconds,
    )
    journal = RedisJournal(door, arguments.keys, arguments.limits) if archive else None
    waits = (
        ArchiveWaits(journal, archive, seconds=settings.archive_wait_seconds)
        if journal and archive
        else None
    )
    warming = Warming(transcripts, archive, held_max=arguments.limits.held_max, observer=observer)
    return Store(
        transcripts=TieredTranscripts(transcripts, warming, waits, observer),
        sessions=TieredSessions(
            RedisSessions(door, arguments, once_seconds=once_seconds),
            transcripts,
            archive,
            warming,
            waits,
        ),
        turns=TieredTurns(turns, warming, waits),
        dependencies=(Dependency(probe=RedisProbe(door, layout), required=True, mode="hot-down"),),
        journal=journal,
        check=layout.verify,
    )


def _session_arguments(settings: Settings, *, archived: bool) -> SessionArguments:
    limits = SessionLimits(
        ttl_seconds=settings.session_ttl_seconds,
        # One more than a page shows, which tells whether another page follows.
        held_max=settings.hot_messages_max + 1 if archived else SESSION_MESSAGES_MAX,
        backlog_entries_max=settings.journal_backlog_max,
        backlog_bytes_max=settings.journal_backlog_bytes_max,
        archived=archived,
    )
    return SessionArguments(Keys(settings.journal_shards), limits)


def _redis_door(
    settings: Settings, stack: AsyncExitStack, *, archived: bool
) -> tuple[RedisDoor, RedisLayout]:
    door = RedisDoor(
        settings.redis_url or "",
        HotLimits(
            connections=settings.redis_pool_size,
            call_seconds=settings.redis_timeout_seconds,
            connect_seconds=settings.redis_connect_timeout_seconds,
            fsync_seconds=settings.redis_fsync_timeout_seconds,
        ),
    )
    stack.push_async_callback(door.close)
    layout = RedisLayout(door, shards=settings.journal_shards, archived=archived)
    door.trust_after(layout.verify)
    return door, layout


def _postgres_door(
    settings: Settings, stack: AsyncExitStack, observer: Observer, *, name: str
) -> PostgresDoor:
    door = PostgresDoor(
        settings.database_url or "",
        ArchiveLimits(
            connections=settings.database_pool_size,
            call_seconds=settings.database_timeout_seconds,
            connect_seconds=settings.database_connect_timeout_seconds,
            statement_cache=settings.database_statement_cache,
        ),
        name=name,
        observer=observer,
    )
    stack.push_async_callback(door.close)
    return door


def _postgres_dependencies(door: PostgresDoor, *, required: bool) -> tuple[Dependency, ...]:
    versions = expected_versions(migrations_directory())
    return (
        Dependency(
            probe=PostgresProbe(door, versions, asks="reachable"),
            required=required,
            mode="archive-down",
        ),
        Dependency(
            probe=PostgresProbe(door, versions, asks="schema"),
            required=True,
            mode="archive-down",
        ),
    )
