"""The API application: routes, errors, document and edge put together."""

from typing import Any

from litestar import Litestar
from litestar.di import Provide
from litestar.exceptions import HTTPException
from litestar.middleware import DefineMiddleware
from litestar.routes import HTTPRoute
from litestar.types import ASGIApp, ControllerRouterHandler
from opentelemetry.trace import Tracer

from service.api.conversations import SessionChat, SessionTurns, TwoLines
from service.api.documentation import (
    document_route,
    documentation_asset,
    documentation_page,
    openapi_config,
)
from service.api.health import live, ready
from service.api.imports import SessionImports
from service.api.middleware import Deadline, Edge
from service.api.problems import answer_domain_error, answer_http_error, answer_unexpected
from service.api.requests import StrictRequest, refuse_unknown_parameters
from service.api.search import Search
from service.api.sessions import Messages, Sessions
from service.api.stats import Stats
from service.api.use_cases import ApiSettings, UseCases
from service.api.user_data import UserData
from service.api.users import Users
from service.core.readiness import Readiness
from service.domain.errors import ChatMemoryError
from service.ports import Observer


def create_app(
    use_cases: UseCases,
    readiness: Readiness,
    settings: ApiSettings,
    observer: Observer,
    tracer: Tracer | None = None,
) -> ASGIApp:
    """The application as a server runs it; without a tracer its requests have no spans."""
    routes = create_routes(use_cases, readiness, settings)
    return Edge(routes, observer, logs_access=True, methods=methods_by_path(routes), tracer=tracer)


def methods_by_path(routes: Litestar) -> dict[str, str]:
    """What OPTIONS allows. Litestar's own answer has the methods of one handler of a path."""
    methods: dict[str, set[str]] = {}
    for route in routes.routes:
        if isinstance(route, HTTPRoute):
            methods.setdefault(route.path_format, set()).update(route.methods)
    return {path: ", ".join(sorted(names)) for path, names in methods.items()}


def create_routes(use_cases: UseCases, readiness: Readiness, settings: ApiSettings) -> Litestar:
    """The application without its edge."""
    routes: list[ControllerRouterHandler] = [
        *(TwoLines, SessionChat, SessionTurns, Sessions, Messages, SessionImports),
        *(Search, Stats, Users, UserData),
        *(live, ready),
    ]
    common: dict[str, Any] = {
        "dependencies": {
            "use_cases": Provide(lambda: use_cases, sync_to_thread=False, use_cache=True),
            "readiness": Provide(lambda: readiness, sync_to_thread=False, use_cache=True),
        },
        "middleware": [
            DefineMiddleware(
                Deadline,
                seconds=settings.request_seconds,
                import_seconds=settings.import_seconds,
                unread_seconds=settings.unread_seconds,
            )
        ],
        "request_class": StrictRequest,
        "request_max_body_size": settings.body_bytes_max,
        "before_request": refuse_unknown_parameters,
        "exception_handlers": {
            ChatMemoryError: answer_domain_error,
            HTTPException: answer_http_error,
            Exception: answer_unexpected,
        },
        "logging_config": None,
    }
    pages: list[ControllerRouterHandler] = []
    if settings.docs:
        # Described by an application that is not served: Litestar adds pages of its own, which load
        # from a CDN, to every application that has a document.
        config = openapi_config(settings.version)
        described = Litestar(route_handlers=routes, openapi_config=config, **common)
        pages = [documentation_page, documentation_asset, document_route(described)]
    return Litestar(route_handlers=[*routes, *pages], openapi_config=None, **common)
