"""The operations application, on a port of its own: health, metrics, the state of the queue."""

from collections.abc import Callable

import msgspec
from litestar import Litestar, Response, get
from litestar.di import NamedDependency, Provide
from litestar.exceptions import HTTPException
from litestar.types import ASGIApp

from service.api.dead_letters import drop_letter, list_letters, retry_letter, show_letter
from service.api.health import live, ready
from service.api.middleware import Edge
from service.api.problems import answer_domain_error, answer_http_error, answer_unexpected
from service.api.requests import StrictRequest, refuse_unknown_parameters
from service.core.dead_letters import DeadLetterDesk
from service.core.readiness import Readiness
from service.domain.errors import ChatMemoryError, NotFound
from service.ports import Journal, Observer

Render = Callable[[], tuple[bytes, str]]


class Operations(msgspec.Struct, frozen=True, kw_only=True):
    """What the operations routes show."""

    render_metrics: Render
    journal: Journal | None
    shards: int
    dead_letters: DeadLetterDesk | None = None


class ShardView(msgspec.Struct, frozen=True, kw_only=True):
    shard: int
    entries: int
    oldest_age_seconds: float
    dead_letters: int
    owner: str | None


class JournalView(msgspec.Struct, frozen=True, kw_only=True):
    entries: int
    oldest_age_seconds: float
    dead_letters: int
    """Beside the entries: what PostgreSQL refused for its content."""
    shards: list[ShardView]


def _desk(operations: Operations) -> DeadLetterDesk:
    if operations.dead_letters is None:
        raise NotFound("This store has no dead letters.")
    return operations.dead_letters


InjectedOperations = NamedDependency[Operations]


@get("/metrics")
async def metrics(operations: InjectedOperations) -> Response[bytes]:
    body, media_type = operations.render_metrics()
    return Response(body, media_type=media_type)


@get("/ops/journal")
async def journal(operations: InjectedOperations) -> JournalView:
    """Entries that are not in the archive yet, and who works on them."""
    if operations.journal is None:
        raise NotFound("This store has no journal.")
    shards = [
        ShardView(
            shard=shard.shard,
            entries=shard.entries,
            oldest_age_seconds=shard.oldest_age_seconds,
            dead_letters=shard.dead_letters,
            owner=shard.owner,
        )
        for shard in await operations.journal.backlog(range(operations.shards))
    ]
    return JournalView(
        entries=sum(shard.entries for shard in shards),
        oldest_age_seconds=max((shard.oldest_age_seconds for shard in shards), default=0.0),
        dead_letters=sum(shard.dead_letters for shard in shards),
        shards=shards,
    )


def create_operations_app(
    readiness: Readiness, operations: Operations, observer: Observer
) -> ASGIApp:
    routes = Litestar(
        route_handlers=[
            *(live, ready, metrics, journal),
            *(list_letters, show_letter, retry_letter, drop_letter),
        ],
        dependencies={
            "readiness": Provide(lambda: readiness, sync_to_thread=False, use_cache=True),
            "operations": Provide(lambda: operations, sync_to_thread=False, use_cache=True),
            "desk": Provide(lambda: _desk(operations), sync_to_thread=False),
        },
        request_class=StrictRequest,
        before_request=refuse_unknown_parameters,
        exception_handlers={
            ChatMemoryError: answer_domain_error,
            HTTPException: answer_http_error,
            Exception: answer_unexpected,
        },
        openapi_config=None,
        logging_config=None,
    )
    # Scrapes and probes come every few seconds: they are counted and not logged.
    return Edge(routes, observer, logs_access=False)
