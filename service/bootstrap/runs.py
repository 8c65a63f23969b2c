"""The processes: API, flusher, migrations, and everything at once for development."""

import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final, Literal

import structlog

from service import __version__
from service.adapters.logs.configuration import configure
from service.adapters.logs.events import LogObserver
from service.adapters.postgres.migrations import Migrator
from service.adapters.prometheus.metrics import PrometheusObserver
from service.api.app import create_app
from service.api.operations import Operations, create_operations_app
from service.api.server import Listener, ServiceServer
from service.api.use_cases import ApiSettings
from service.bootstrap.ambient import Observers, SystemClock, process_tracer
from service.bootstrap.connections import migrations_directory
from service.bootstrap.flushers import open_flusher, open_word_index
from service.bootstrap.stores import Store, open_store
from service.bootstrap.use_cases import open_use_cases
from service.core.background import Component, LoopLag, running
from service.core.backlog import BacklogWatch
from service.core.readiness import Readiness
from service.dev.stack import DevStack
from service.domain.errors import HotUnavailable
from service.ports import Clock, Observer
from service.settings import Settings, SettingsError, missing_urls, with_urls

WATCH_PAUSE_SECONDS: Final = 1.0
REQUESTS_SHARE: Final = 0.7
"""Part of the grace time for what is in flight; the last flush comes after it."""
log = structlog.stdlib.get_logger("chat_memory")


async def serve(
    settings: Settings,
    *,
    with_flusher: bool,
    started: Callable[[], None] = lambda: None,
) -> None:
    """Serve the API, and flush as well if asked, until a signal. Raises SettingsError."""
    missing_urls(settings)
    configure(settings.log_level, settings.log_format)
    clock, metrics = SystemClock(), _metrics(settings)
    observer = Observers(metrics, LogObserver())
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(
            open_store(settings, clock=clock, observer=observer)
        )
        await _check(store)
        readiness = Readiness(store.dependencies)
        components: list[Component] = [*store.components, _loop_lag(clock, observer)]
        if with_flusher and store.journal is not None:
            components += await _flusher_components(stack, settings, store, clock, observer)
        await stack.enter_async_context(running(components))
        use_cases = await stack.enter_async_context(
            open_use_cases(settings, store, clock, observer)
        )
        api = create_app(
            use_cases,
            readiness,
            ApiSettings(
                version=__version__,
                body_bytes_max=settings.body_bytes_max,
                request_seconds=settings.request_timeout_seconds,
                docs=settings.docs == "on",
                import_seconds=settings.import_timeout_seconds,
            ),
            observer,
            process_tracer(),
        )
        await _serve(settings, [(api, settings.port)], readiness, store, metrics, observer, started)
    log.info("stopped")


async def flush(settings: Settings) -> None:
    """Flush until a signal. Raises SettingsError."""
    if settings.store != "hybrid":
        raise SettingsError("STORE: only the hybrid store has something to flush")
    missing_urls(settings)
    configure(settings.log_level, settings.log_format)
    clock, metrics = SystemClock(), _metrics(settings)
    observer = Observers(metrics, LogObserver())
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(
            open_store(settings, clock=clock, observer=observer)
        )
        await _check(store)
        components = await _flusher_components(stack, settings, store, clock, observer)
        await stack.enter_async_context(running([*components, _loop_lag(clock, observer)]))
        readiness = Readiness(store.dependencies)
        await _serve(settings, [], readiness, store, metrics, observer, lambda: None)
    log.info("stopped")


async def migrate(settings: Settings, command: Literal["up", "down", "status", "verify"]) -> None:
    """Raises SettingsError and the errors of the migrator."""
    url = settings.migration_database_url or settings.database_url
    if url is None:
        raise SettingsError("DATABASE_URL: is required by migrate")
    migrator = Migrator(url, migrations_directory(), say=_say)
    match command:
        case "up":
            if not await migrator.up():
                _say("nothing to do")
        case "down":
            await migrator.down()
        case "status":
            for migration in await migrator.status():
                _say(f"{migration.version:04d} {migration.name}: {migration.state}")
        case "verify":
            await migrator.verify()
            _say("the schema is of this release")


async def dev(settings: Settings) -> None:
    """Start what is missing, migrate, serve and flush, until a signal. Raises DevError."""
    stack = DevStack(
        Path.cwd() / settings.data_dir,
        database_url=settings.database_url,
        redis_url=settings.redis_url,
        with_model=settings.openai_api_key is None,
        say=_say,
    )
    try:
        await stack.start()
        ready = with_urls(
            settings,
            database_url=stack.database_url,
            redis_url=stack.redis_url,
            model=stack.model,
        )
        await migrate(ready, "up")
        await serve(ready, with_flusher=True, started=lambda: _say(_welcome(ready)))
    finally:
        await stack.stop()


def _metrics(settings: Settings) -> PrometheusObserver:
    return PrometheusObserver(
        version=__version__,
        store=settings.store,
        models=[
            settings.openai_model,
            *settings.fallback_models,
            *([settings.summary_model] if settings.summary_model else []),
        ],
    )


async def _check(store: Store) -> None:
    """Raises LayoutMismatch. A Redis that is away is checked before its first use instead."""
    try:
        if warning := await store.check():
            log.warning("redis_check_skipped", reason=warning)
    except HotUnavailable as error:
        log.warning("redis_is_away", reason=error.detail)


async def _flusher_components(
    stack: AsyncExitStack, settings: Settings, store: Store, clock: Clock, observer: Observer
) -> list[Component]:
    flusher, _ = await stack.enter_async_context(
        open_flusher(settings, clock=clock, observer=observer)
    )
    if store.journal is None:
        return []
    watch = BacklogWatch(
        store.journal,
        shards=settings.journal_shards,
        pause_seconds=WATCH_PAUSE_SECONDS,
        observer=observer,
    )
    word_index = await stack.enter_async_context(open_word_index(settings, observer))
    return [flusher, watch, word_index]


async def _serve(
    settings: Settings,
    apps: list[tuple[object, int]],
    readiness: Readiness,
    store: Store,
    metrics: PrometheusObserver,
    observer: Observer,
    started: Callable[[], None],
) -> None:
    operations = Operations(
        render_metrics=metrics.render,
        journal=store.journal,
        shards=settings.journal_shards,
        dead_letters=store.dead_letters,
    )
    ops = create_operations_app(readiness, operations, observer)
    server = ServiceServer(
        [
            Listener(app=app, host=settings.host, port=port)
            for app, port in [*apps, (ops, settings.ops_port)]
        ],
        drain=readiness.drain,
        grace_seconds=settings.shutdown_grace_seconds * REQUESTS_SHARE,
    )
    log.info("starting", store=settings.store, version=__version__)
    await server.serve(started=started)


def _loop_lag(clock: Clock, observer: Observer) -> Component:
    return LoopLag(pause_seconds=WATCH_PAUSE_SECONDS, clock=clock, observer=observer)


def _welcome(settings: Settings) -> str:
    api = f"http://{settings.host}:{settings.port}"
    question = '{"user_id": "ada", "message": "Hello, my name is Ada."}'
    return (
        f"\n  API         {api}   (documentation: {api}/docs)\n"
        f"  Operations  http://{settings.host}:{settings.ops_port}\n\n"
        f"  curl {api}/chat -H 'content-type: application/json' -d '{question}'\n"
        f"\n  Ctrl-C stops everything; the data stays in {settings.data_dir}.\n"
    )


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
