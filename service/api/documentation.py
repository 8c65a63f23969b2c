"""The OpenAPI document's problem responses, and the pages for people, without the internet."""

from collections import defaultdict
from functools import cache
from importlib import resources
from typing import Final

import msgspec
from litestar import Litestar, MediaType, Response, get
from litestar.exceptions import NotFoundException
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath

from service.api.document import openapi_document
from service.api.problems import PROBLEM_MEDIA_TYPE, STATUS_OF, Problem

STORE_PROBLEMS: Final = ("hot_unavailable", "archive_unavailable", "overloaded")
READ_PROBLEMS: Final = ("invalid_request", "invalid_value", "not_found", *STORE_PROBLEMS)
WRITE_PROBLEMS: Final = ("backlog_full", *STORE_PROBLEMS)
CREATE_PROBLEMS: Final = (
    *("invalid_request", "invalid_value", "too_large", "unsupported_media_type"),
    "durability_unavailable",
    *WRITE_PROBLEMS,
)
CHAT_PROBLEMS: Final = (
    *("not_found", "session_busy", "request_running", "turn_state"),
    *("idempotency_key_reused", "context_too_large"),
    *("model_error", "model_unavailable", "model_timeout"),
    *CREATE_PROBLEMS,
)

ASSETS: Final = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "start.js": "text/javascript",
    "favicon-32x32.png": "image/png",
}
CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'"
)

PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>chat-memory API</title>
<link rel="icon" href="/docs/assets/favicon-32x32.png">
<link rel="stylesheet" href="/docs/assets/swagger-ui.css">
</head>
<body>
<div id="documentation"></div>
<script src="/docs/assets/swagger-ui-bundle.js"></script>
<script src="/docs/assets/start.js"></script>
</body>
</html>
"""


def problems(*codes: str) -> dict[int, ResponseSpec]:
    """The problem responses of a route, by status; every route may end in 500."""
    by_status: defaultdict[int, list[str]] = defaultdict(list)
    for code in (*codes, "internal"):
        by_status[STATUS_OF[code]].append(code)
    return {
        status: ResponseSpec(
            data_container=Problem,
            description=", ".join(sorted(of_status)),
            media_type=PROBLEM_MEDIA_TYPE,  # pyright: ignore[reportArgumentType]  # any text is sent
            generate_examples=False,
        )
        for status, of_status in sorted(by_status.items())
    }


def openapi_config(version: str) -> OpenAPIConfig:
    return OpenAPIConfig(
        title="chat-memory",
        version=version,
        description=(
            "A conversation-memory service. Every error is a problem document (RFC 9457) with a "
            "stable `code`; `retryable` says whether the same request may succeed later."
        ),
        render_plugins=(),
        # The document is served by a route of our own.
        path="/openapi",
        use_handler_docstrings=True,
    )


@get("/docs", include_in_schema=False, media_type=MediaType.HTML)
async def documentation_page() -> Response[str]:
    return Response(
        PAGE,
        media_type=MediaType.HTML,
        headers={"content-security-policy": CONTENT_SECURITY_POLICY},
    )


@get("/docs/assets/{name:str}", include_in_schema=False)
async def documentation_asset(name: FromPath[str]) -> Response[bytes]:
    media_type = ASSETS.get(name)
    if media_type is None:
        raise NotFoundException
    folder = resources.files("service.api") / "static" / "swagger-ui"
    return Response(
        (folder / name).read_bytes(),
        media_type=media_type,
        headers={"cache-control": "public, max-age=86400"},
    )


def document_route(described: Litestar) -> HTTPRouteHandler:
    """The route of the document of another application; it is made at the first request."""

    @cache
    def document() -> bytes:
        return msgspec.json.encode(openapi_document(described))

    @get("/openapi.json", include_in_schema=False)
    async def openapi_json() -> Response[bytes]:
        return Response(document(), media_type=MediaType.JSON)

    return openapi_json
