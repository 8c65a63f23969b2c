"""Opening the store that STORE names, and the flusher behind it."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import msgspec

from service.adapters.memory.erasing import MemoryErasure, MemoryUserSessions
from service.adapters.memory.store import MemoryStore
from service.adapters.memory.transcripts import MemorySessions, MemoryTranscripts
from service.adapters.memory.turns import MemoryTurns
from service.adapters.postgres.archive import PostgresArchive
from service.adapters.postgres.calls import PostgresSweeper
from service.adapters.postgres.erasing import (
    PostgresArchiveErasure,
    PostgresErasure,
    PostgresUserSessions,
)
from service.adapters.postgres.sessions import PostgresSessions
from service.adapters.postgres.transcripts import PostgresTranscripts
from service.adapters.postgres.turns import PostgresTurns
from service.adapters.redis.durable import DurableRuns
from service.adapters.redis.erasing import RedisErasure
from service.adapters.redis.health import RedisProbe
from service.adapters.redis.journal import RedisJournal
from service.adapters.redis.sessions import RedisSessions
from service.adapters.redis.transcripts import RedisTranscripts
from service.adapters.redis.turns import RedisTurns
from service.bootstrap.connections import (
    postgres_dependencies,
    postgres_door,
    redis_door,
    session_arguments,
)
from service.core.background import Component, Looper
from service.core.erasing import ForgetProfile
from service.core.exporting import ReadProfile
from service.core.readiness import Dependency
from service.core.tiered.archiving import ArchiveWaits
from service.core.tiered.erasing import ErasableArchive, TieredErasure, TieredUserSessions
from service.core.tiered.sessions import TieredSessions
from service.core.tiered.transcripts import TieredTranscripts
from service.core.tiered.turns import TieredTurns
from service.core.tiered.warming import Warming
from service.ports import (
    Archive,
    ArchiveErasure,
    Clock,
    Erasure,
    Journal,
    Observer,
    Sessions,
    Transcripts,
    Turns,
    UserSessions,
)
from service.settings import Settings

DRAIN_SHARE: Final = 0.25
"""Part of the grace time that is left for the last flush."""
SWEEP_PAUSE_SECONDS: Final = 10.0
"""Between removals of expired call records and leases."""


async def nothing_to_check() -> str | None:
    return None


async def no_profile_to_forget(tenant: str, user_id: str) -> bool:
    """For stores that keep no profiles."""
    del tenant, user_id
    return False


async def no_profile_to_read(tenant: str, user_id: str) -> None:
    """For stores that keep no profiles."""
    del tenant, user_id


class Store(msgspec.Struct, frozen=True, kw_only=True):
    """An open store: its ports, what it depends on, and its queue if it has one."""

    transcripts: Transcripts
    sessions: Sessions
    turns: Turns
    erasure: Erasure
    user_sessions: UserSessions
    forget_profile: ForgetProfile
    read_profile: ReadProfile
    dependencies: tuple[Dependency, ...] = ()
    components: tuple[Component, ...] = ()
    """What has to run beside it, in every process that has it open."""
    journal: Journal | None = None
    check: Callable[[], Awaitable[str | None]] = nothing_to_check
    """Raises where the stores contradict the settings; returns a warning or None."""


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
                yield _redis_store(settings, stack, observer, None)
            case "hybrid":
                door = postgres_door(settings, stack, observer, name="api")
                behind = (PostgresArchive(door), PostgresArchiveErasure(door))
                store = _redis_store(settings, stack, observer, behind)
                away = postgres_dependencies(door, required=False)
                yield msgspec.structs.replace(store, dependencies=(*store.dependencies, *away))


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
        erasure=MemoryErasure(store),
        user_sessions=MemoryUserSessions(store),
        forget_profile=no_profile_to_forget,
        read_profile=no_profile_to_read,
    )


def _postgres_store(
    settings: Settings, stack: AsyncExitStack, clock: Clock, observer: Observer
) -> Store:
    door = postgres_door(settings, stack, observer, name="api")
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
        erasure=PostgresErasure(door, clock),
        user_sessions=PostgresUserSessions(door),
        forget_profile=PostgresArchiveErasure(door).forget_profile,
        read_profile=PostgresArchiveErasure(door).read_profile,
        dependencies=postgres_dependencies(door, required=True),
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
    settings: Settings,
    stack: AsyncExitStack,
    observer: Observer,
    behind: tuple[PostgresArchive, PostgresArchiveErasure] | None,
) -> Store:
    """The hot memory in front of an archive, or of none."""
    archive, erasure = behind or (None, None)
    arguments = session_arguments(settings, archived=archive is not None)
    door, layout = redis_door(settings, stack, archived=archive is not None)
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
    hot_erasure = RedisErasure(door, arguments)
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
        erasure=TieredErasure(hot_erasure, _erasable(archive, erasure, waits)),
        user_sessions=TieredUserSessions(hot_erasure, archive),
        forget_profile=erasure.forget_profile if erasure else no_profile_to_forget,
        read_profile=erasure.read_profile if erasure else no_profile_to_read,
        dependencies=(Dependency(probe=RedisProbe(door, layout), required=True, mode="hot-down"),),
        journal=journal,
        check=layout.verify,
    )


def _erasable(
    archive: Archive | None, erasure: ArchiveErasure | None, waits: ArchiveWaits | None
) -> ErasableArchive | None:
    if archive is None or erasure is None or waits is None:
        return None
    return ErasableArchive(archive=archive, erasure=erasure, waits=waits)
