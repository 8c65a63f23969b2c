"""Liveness and readiness, the same on both ports."""

from typing import Literal

import msgspec
from litestar import Response, get
from litestar.openapi.datastructures import ResponseSpec

from service.api.use_cases import InjectedReadiness
from service.core.readiness import DependencyHealth, Health, Mode


class LiveView(msgspec.Struct, frozen=True, kw_only=True):
    status: Literal["live"] = "live"


class ReadyView(msgspec.Struct, frozen=True, kw_only=True):
    status: Literal["ready", "not_ready"]
    draining: bool
    mode: Mode
    dependencies: tuple[DependencyHealth, ...]


@get("/health/live", operation_id="get_liveness", summary="Is the process alive?", tags=["Health"])
async def live() -> LiveView:
    """Asks nothing: a restart mends no dependency."""
    return LiveView()


@get(
    "/health/ready",
    operation_id="get_readiness",
    summary="Does it want traffic?",
    tags=["Health"],
    responses={503: ResponseSpec(ReadyView, description="Not now", generate_examples=False)},
)
async def ready(readiness: InjectedReadiness) -> Response[ReadyView]:
    """Asks each dependency, within a second. 503 while draining or without a needed one."""
    health = await readiness.health()
    return Response(_view(health), status_code=200 if health.ready else 503)


def _view(health: Health) -> ReadyView:
    return ReadyView(
        status="ready" if health.ready else "not_ready",
        draining=health.draining,
        mode=health.mode,
        dependencies=health.dependencies,
    )
