"""Trace ids: a request's name in problems and logs (W3C Trace Context)."""

import re
import secrets
from collections.abc import Iterable
from typing import Any, Final

TRACE_KEY: Final = "chat_memory_trace_id"
_TRACEPARENT: Final = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}.*")
_NO_TRACE: Final = b"0" * 32


def trace_id_from(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The caller's trace id, or a new one."""
    for name, value in headers:
        if name == b"traceparent":
            found = _TRACEPARENT.fullmatch(value)
            if found and found[1] != _NO_TRACE:
                return found[1].decode()
    return new_trace_id()


def new_trace_id() -> str:
    return secrets.token_hex(16)


def trace_id_of(scope: Any) -> str:
    """The trace id of a request; the middleware gave it one."""
    return scope.get(TRACE_KEY, "")
