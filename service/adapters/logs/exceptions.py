"""Exceptions in logs: what was raised and where, never with what.

Their texts and the values of local variables may hold what a user said, or a secret.
"""

import sys
import traceback
from collections.abc import MutableMapping
from typing import Any, Final

FRAMES_MAX: Final = 30
CHAIN_MAX: Final = 5


def without_values(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """A structlog processor: ``exc_info`` becomes types and places."""
    match event.pop("exc_info", None):
        case BaseException() as error:
            event["exception"] = described(error)
        case (_, BaseException() as error, _):
            event["exception"] = described(error)
        case True:
            if error := sys.exc_info()[1]:
                event["exception"] = described(error)
        case _:
            pass
    return event


def described(error: BaseException) -> list[dict[str, Any]]:
    """The exception and what caused it, outermost first."""
    found: list[dict[str, Any]] = []
    link: BaseException | None = error
    while link is not None and len(found) < CHAIN_MAX:
        frames = traceback.extract_tb(link.__traceback__)[-FRAMES_MAX:]
        places = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
        found.append({"type": type(link).__qualname__, "at": places})
        link = link.__cause__ or link.__context__
    return found
