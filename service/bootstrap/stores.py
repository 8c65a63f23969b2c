"""Opening the store that STORE names, and the flusher behind it."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import msgspec

from service.adapters.memory.erasing import MemoryErasure, MemoryUserSessions
from service.adapters.memory.profiles import MemoryProfiles
from service.adapters.memory.search import MemorySearch
from service.adapters.memory.statistics import MemoryStatistics
from service.adapters.memory.store import MemoryStore
from service.adapters.memory.transcripts import MemorySessions, MemoryTranscripts
from service.adapters.memory.turns import MemoryTurns
from service.adapters.postgres.archive import PostgresArchive
from service.adapters.postgres.counters import PostgresStatistics
from service.adapters.postgres.door import PostgresDoor
from service.adapters.postgres.erasing import (
    PostgresArchiveErasure,
    PostgresErasure,
    PostgresUserSessions,
)
from service.adapters.postgres.imports import PostgresImports
from service.adapters.postgres.profiles import PostgresProfiles
from service.adapters.postgres.search import PostgresSearch
from service.adapters.postgres.sessions import PostgresSessions
from service.adapters.postgres.transcripts import PostgresTranscripts
from service.adapters.postgres.turns import PostgresTurns
from service.adapters.postgres.writer import PostgresArchiveWriter
from service.adapters.redis.client import RedisDoor
from service.adapters.redis.durable import DurableRuns
from service.adapters.redis.erasing import RedisErasure
from service.adapters.redis.healing import RedisHealing
from service.adapters.redis.health import RedisProbe
from service.adapters.redis.journal import RedisJournal
from service.adapters.redis.keys import Keys
from service.adapters.redis.pieces import RedisPieces
from service.adapters.redis.profiles import RedisProfileCopies, RedisProfiles
from service.adapters.redis.replies import SessionArguments
from service.adapters.redis.sessions import RedisSessions
from service.adapters.redis.stops import RedisStops
from service.adapters.redis.transcripts import RedisTranscripts
from service.adapters.redis.turns import RedisTurns
from service.bootstrap.connections import (
    dead_letters,
    import_door,
    postgres_dependencies,
    postgres_door,
    postgres_sweeper,
    redis_door,
    redis_stops,
    session_arguments,
)
from service.core.background import Component
from service.core.dead_letters import DeadLetterDesk
from service.core.importing import NoImports
from service.core.readiness import Dependency
from service.core.tiered.archiving import ArchiveWaits
from service.core.tiered.erasing import ErasableArchive, TieredErasure, TieredUserSessions
from service.core.tiered.imports import TieredImports
from service.core.tiered.profiles import TieredProfiles
from service.core.tiered.search import TieredSearch
from service.core.tiered.sessions import TieredSessions
from service.core.tiered.transcripts import TieredTranscripts
from service.core.tiered.turns import TieredTurns
from service.core.tiered.warming import Warming
from service.ports import (
    Clock,
    Erasure,
    Imports,
    Journal,
    Observer,
    Pieces,
    Profiles,
    Search,
    Sessions,
    Statistics,
    Transcripts,
    Turns,
    UserSessions,
)
from service.settings import Settings

MARK_CALLS: Final = 3
"""How many calls of PostgreSQL, one after another, a profile's mark outlives."""


async def nothing_to_check() -> str | None:
    return None


class Store(msgspec.Struct, frozen=True, kw_only=True):
    """An open store: its ports, what it depends on, and its queue if it has one."""

    transcripts: Transcripts
    sessions: Sessions
    turns: Turns
    profiles: Profiles
    erasure: Erasure
    user_sessions: UserSessions
    search: Search | None = None
    """None where there is no archive."""
    statistics: Statistics | None = None
    """Likewise."""
    imports: Imports = NoImports()
    pieces: Pieces | None = None
    """None where readers in other processes wait for a turn's end."""
    dependencies: tuple[Dependency, ...] = ()
    components: tuple[Component, ...] = ()
    """What has to run beside it, in every process that has it open."""
    turn_components: tuple[Component, ...] = ()
    """What has to run beside turns."""
    journal: Journal | None = None
    dead_letters: DeadLetterDesk | None = None
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
                yield _redis_store(settings, stack, clock, observer, postgres=None)
            case "hybrid":
                door = postgres_door(settings, stack, observer, name="api")
                store = _redis_store(settings, stack, clock, observer, postgres=door)
                away = postgres_dependencies(door, required=False)
                yield msgspec.structs.replace(
                    store,
                    dependencies=(*store.dependencies, *away),
                    components=(postgres_sweeper(door, observer),),
                )


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
        profiles=MemoryProfiles(),
        erasure=MemoryErasure(store),
        user_sessions=MemoryUserSessions(store),
        search=MemorySearch(store),
        statistics=MemoryStatistics(store),
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
        profiles=PostgresProfiles(door),
        erasure=PostgresErasure(door, clock),
        user_sessions=PostgresUserSessions(door),
        search=PostgresSearch(door, clock, call_seconds=settings.database_timeout_seconds),
        statistics=PostgresStatistics(door),
        dependencies=postgres_dependencies(door, required=True),
        imports=_postgres_imports(settings, stack, clock, observer),
        components=(postgres_sweeper(door, observer),),
    )


def _postgres_imports(
    settings: Settings, stack: AsyncExitStack, clock: Clock, observer: Observer
) -> PostgresImports:
    door = import_door(settings, stack, observer)
    return PostgresImports(door, clock, once_seconds=settings.idempotency_ttl_seconds)


def _redis_store(
    settings: Settings,
    stack: AsyncExitStack,
    clock: Clock,
    observer: Observer,
    *,
    postgres: PostgresDoor | None,
) -> Store:
    """The hot memory in front of an archive, or of none."""
    archive = PostgresArchive(postgres) if postgres else None
    arguments = session_arguments(settings, archived=archive is not None)
    door, layout = redis_door(settings, stack, archived=archive is not None)
    once_seconds = settings.idempotency_ttl_seconds
    durable = DurableRuns(
        door, replicas=settings.redis_wait_replicas, fsync_problem=layout.fsync_problem
    )
    transcripts = RedisTranscripts(door, durable, arguments, once_seconds=once_seconds)
    listener = redis_stops(settings, observer)
    turns = _redis_turns(settings, door, durable, arguments, listener)
    journal = RedisJournal(door, arguments.keys, arguments.limits) if archive else None
    letters = dead_letters(settings, door, arguments)
    waits: ArchiveWaits | None = None
    if journal and archive:
        waits = ArchiveWaits(journal, archive, letters, seconds=settings.archive_wait_seconds)
    hot_erasure = RedisErasure(door, arguments)
    warming = Warming(transcripts, archive, held_max=arguments.limits.held_max, observer=observer)
    sessions = RedisSessions(door, arguments, once_seconds=once_seconds)
    store = Store(
        transcripts=TieredTranscripts(transcripts, warming, waits, observer),
        sessions=TieredSessions(sessions, transcripts, archive, warming, waits, letters),
        turns=TieredTurns(turns, warming, waits),
        pieces=RedisPieces(door, arguments),
        profiles=RedisProfiles(door, arguments.keys),
        erasure=TieredErasure(hot_erasure, None),
        user_sessions=TieredUserSessions(hot_erasure, archive),
        dependencies=(Dependency(probe=RedisProbe(door, layout), required=True, mode="hot-down"),),
        turn_components=(listener,),
        journal=journal,
        check=layout.verify,
    )
    if postgres is None or journal is None or waits is None:
        return store
    imports = _postgres_imports(settings, stack, clock, observer)
    return msgspec.structs.replace(
        _with_archive(settings, store, postgres, journal, clock),
        profiles=_archived_profiles(settings, door, arguments.keys, postgres),
        erasure=TieredErasure(hot_erasure, _erasable(postgres, waits)),
        imports=TieredImports(RedisHealing(door, arguments), imports, waits),
        dead_letters=DeadLetterDesk(letters, PostgresArchiveWriter(postgres, observer), observer),
    )


def _erasable(postgres: PostgresDoor, waits: ArchiveWaits) -> ErasableArchive:
    return ErasableArchive(
        archive=PostgresArchive(postgres), erasure=PostgresArchiveErasure(postgres), waits=waits
    )


def _redis_turns(
    settings: Settings,
    door: RedisDoor,
    durable: DurableRuns,
    arguments: SessionArguments,
    listener: RedisStops,
) -> RedisTurns:
    return RedisTurns(
        door,
        durable,
        arguments,
        listener,
        once_seconds=settings.idempotency_ttl_seconds,
        lease_seconds=settings.turn_lease_seconds,
    )


def _with_archive(
    settings: Settings, store: Store, postgres: PostgresDoor, journal: Journal, clock: Clock
) -> Store:
    """The store with what only its archive answers."""
    search = PostgresSearch(postgres, clock, call_seconds=settings.database_timeout_seconds)
    return msgspec.structs.replace(
        store,
        search=TieredSearch(search, journal, shards=settings.journal_shards),
        statistics=PostgresStatistics(postgres),
    )


def _archived_profiles(
    settings: Settings, redis: RedisDoor, keys: Keys, postgres: PostgresDoor
) -> Profiles:
    copies = RedisProfileCopies(
        redis,
        keys,
        ttl_seconds=settings.session_ttl_seconds,
        mark_seconds=MARK_CALLS * settings.database_timeout_seconds,
    )
    return TieredProfiles(PostgresProfiles(postgres), copies)
