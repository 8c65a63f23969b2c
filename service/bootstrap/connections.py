"""Doors to the stores, as the settings describe them."""

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from service.adapters.memory.store import SESSION_MESSAGES_MAX
from service.adapters.postgres.calls import PostgresSweeper
from service.adapters.postgres.door import ArchiveLimits, PostgresDoor
from service.adapters.postgres.health import PostgresProbe
from service.adapters.postgres.imports import IMPORTS_MAX, STATEMENT_SECONDS
from service.adapters.postgres.migrations import expected_versions
from service.adapters.redis.client import HotLimits, RedisDoor
from service.adapters.redis.dead_letters import RedisDeadLetters
from service.adapters.redis.keys import Keys
from service.adapters.redis.layout import RedisLayout
from service.adapters.redis.replies import SessionArguments, SessionLimits
from service.adapters.redis.stops import RedisStops
from service.core.background import Component, Looper
from service.core.readiness import Dependency
from service.ports import Observer
from service.settings import Settings

SWEEP_PAUSE_SECONDS: Final = 10.0
"""Between removals of expired call records and leases."""


def migrations_directory() -> Path:
    """Beside the package in a checkout, inside it where it was installed."""
    installed = Path(__file__).parents[1] / "migrations"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "migrations"


def session_arguments(settings: Settings, *, archived: bool) -> SessionArguments:
    limits = SessionLimits(
        ttl_seconds=settings.session_ttl_seconds,
        # One more than a page shows, which tells whether another page follows.
        held_max=settings.hot_messages_max + 1 if archived else SESSION_MESSAGES_MAX,
        backlog_entries_max=settings.journal_backlog_max,
        backlog_bytes_max=settings.journal_backlog_bytes_max,
        archived=archived,
    )
    return SessionArguments(Keys(settings.journal_shards), limits)


def redis_door(
    settings: Settings, stack: AsyncExitStack, *, archived: bool
) -> tuple[RedisDoor, RedisLayout]:
    door = RedisDoor(settings.redis_url or "", _hot_limits(settings))
    stack.push_async_callback(door.close)
    layout = RedisLayout(door, shards=settings.journal_shards, archived=archived)
    door.trust_after(layout.verify)
    return door, layout


def dead_letters(
    settings: Settings, door: RedisDoor, arguments: SessionArguments
) -> RedisDeadLetters:
    return RedisDeadLetters(
        door, arguments.keys, arguments.limits, letters_max=settings.dead_letters_max
    )


def redis_stops(settings: Settings, observer: Observer) -> RedisStops:
    return RedisStops(settings.redis_url or "", _hot_limits(settings), observer)


def postgres_door(
    settings: Settings,
    stack: AsyncExitStack,
    observer: Observer,
    *,
    name: str,
    connections: int | None = None,
) -> PostgresDoor:
    door = PostgresDoor(
        settings.database_url or "",
        ArchiveLimits(
            connections=connections or settings.database_pool_size,
            call_seconds=settings.database_timeout_seconds,
            connect_seconds=settings.database_connect_timeout_seconds,
            statement_cache=settings.database_statement_cache,
        ),
        name=name,
        observer=observer,
    )
    stack.push_async_callback(door.close)
    return door


def postgres_sweeper(door: PostgresDoor, observer: Observer) -> Component:
    return Looper(
        "postgres-sweeper",
        PostgresSweeper(door).sweep,
        pause_seconds=SWEEP_PAUSE_SECONDS,
        observer=observer,
    )


def import_door(settings: Settings, stack: AsyncExitStack, observer: Observer) -> PostgresDoor:
    """A door for transactions that last as long as their client sends."""
    door = PostgresDoor(
        settings.database_url or "",
        ArchiveLimits(
            connections=IMPORTS_MAX,
            # A request's own bound ends before this one.
            call_seconds=settings.import_timeout_seconds + 5,
            connect_seconds=settings.database_connect_timeout_seconds,
            statement_seconds=STATEMENT_SECONDS,
            statement_cache=settings.database_statement_cache,
        ),
        name="import",
        observer=observer,
    )
    stack.push_async_callback(door.close)
    return door


def _hot_limits(settings: Settings) -> HotLimits:
    return HotLimits(
        connections=settings.redis_pool_size,
        call_seconds=settings.redis_timeout_seconds,
        connect_seconds=settings.redis_connect_timeout_seconds,
        fsync_seconds=settings.redis_fsync_timeout_seconds,
    )


def postgres_dependencies(door: PostgresDoor, *, required: bool) -> tuple[Dependency, ...]:
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
