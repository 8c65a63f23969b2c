"""How log lines look: one JSON object each on standard error, or text for people."""

import logging
import sys
from typing import Any, Final, Literal

import structlog

from service.adapters.logs.exceptions import without_values

QUIET_LOGGERS: Final = ("httpx2", "httpcore2", "openai", "uvicorn.access", "uvicorn.error")


def configure(
    level: Literal["debug", "info", "warning", "error"], style: Literal["json", "console"]
) -> None:
    """Send everything through one formatter, the logs of libraries included."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        without_values,
    ]
    renderers: list[Any] = (
        [structlog.processors.JSONRenderer()]
        if style == "json"
        else [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    # It warns with what a caller's tracestate says.
    logging.getLogger("opentelemetry.trace.span").setLevel(logging.ERROR)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
