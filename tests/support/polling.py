"""Waiting for what happens elsewhere: by looking, with a deadline."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, cast

Found = TypeVar("Found")

_POLL_SECONDS = 0.01


async def eventually(check: Callable[[], Found | Awaitable[Found]], within_seconds: float) -> Found:
    """Calls `check`, a function or a coroutine function, until its answer is true; returns that.

    An AssertionError of the check counts as false, and is the cause of ours at the deadline.
    """
    deadline = time.monotonic() + within_seconds
    while True:
        failure: AssertionError | None = None
        answer: object = None
        try:
            answer = check()
            if isinstance(answer, Awaitable):
                answer = await cast("Awaitable[Found]", answer)
        except AssertionError as error:
            failure = error
        if answer:
            return cast("Found", answer)

        if time.monotonic() > deadline:
            message = f"not so after {within_seconds:g} s; the last answer was {answer!r}"
            raise AssertionError(message) from failure
        await asyncio.sleep(_POLL_SECONDS)
