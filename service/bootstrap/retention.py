"""The command that drops what is kept no longer."""

import asyncio
import signal
from contextlib import AsyncExitStack

import structlog

from service.adapters.logs.configuration import configure
from service.adapters.logs.events import LogObserver
from service.adapters.postgres.calls import PostgresSweeper
from service.adapters.postgres.health import PostgresProbe
from service.adapters.postgres.migrations import expected_versions
from service.adapters.postgres.retention import PostgresRetention
from service.adapters.postgres.writer import PostgresArchiveWriter
from service.adapters.redis.retention import RedisRetention
from service.bootstrap.ambient import SystemClock
from service.bootstrap.connections import (
    dead_letters,
    migrations_directory,
    postgres_door,
    redis_door,
    session_arguments,
)
from service.core.dead_letters import DeadLetterDesk
from service.core.retaining import Retained, Retaining
from service.domain.errors import ArchiveUnavailable
from service.domain.ids import first_id_at
from service.settings import Settings, SettingsError, missing_urls

DAY_MILLISECONDS = 24 * 3600 * 1000
log = structlog.stdlib.get_logger("chat_memory")


async def retain(settings: Settings) -> Retained:
    """Until nothing older than RETENTION_DAYS is left, or a signal.

    Raises SettingsError, and HotUnavailable before anything is deleted.
    """
    if settings.store not in {"hybrid", "postgres"}:
        raise SettingsError("STORE: only the hybrid and the postgres store have an archive")
    missing_urls(settings)
    configure(settings.log_level, settings.log_format)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    try:
        return await run_retention(settings, stopping)
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


async def run_retention(settings: Settings, stopping: asyncio.Event) -> Retained:
    """As ``retain``, stopped by an event instead of a signal."""
    async with AsyncExitStack() as stack:
        observer = LogObserver()
        door = postgres_door(settings, stack, observer, name="retention")
        await _check_schema(PostgresProbe(door, _versions(), asks="schema"))
        hot: RedisRetention | None = None
        letters: DeadLetterDesk | None = None
        if settings.store == "hybrid":
            redis, layout = redis_door(settings, stack, archived=True)
            await layout.verify()
            arguments = session_arguments(settings, archived=True)
            hot = RedisRetention(redis, arguments)
            letters = DeadLetterDesk(
                dead_letters(settings, redis, arguments),
                PostgresArchiveWriter(door, observer),
                observer,
            )
        done = Retained(complete=True)
        if settings.retention_days:
            kept = settings.retention_days * DAY_MILLISECONDS
            before = first_id_at(SystemClock().milliseconds() - kept)
            retaining = Retaining(PostgresRetention(door), hot, stopped=stopping.is_set)
            done = await retaining.run(before)
            if letters is not None and not stopping.is_set():
                # The archive has not got them: it names none of them.
                done.messages += await letters.drop_before(before, by="retention")
        sweeper = PostgresSweeper(door)
        while not stopping.is_set() and await sweeper.sweep():
            pass
    log.info(
        "retained",
        days=settings.retention_days,
        tenants=done.tenants,
        messages=done.messages,
        sessions_ended=done.sessions_ended,
        complete=done.complete and not stopping.is_set(),
    )
    return done


def _versions() -> list[int]:
    return list(expected_versions(migrations_directory()))


async def _check_schema(probe: PostgresProbe) -> None:
    if problem := await probe.problem():
        raise ArchiveUnavailable(problem)
