"""Reading a streamed answer as it comes: what was said, and how long a silence is borne."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from typing import Final

import msgspec

from service.adapters.openai.client import Opened, timed_out
from service.adapters.openai.events import Event, EventDecoder
from service.adapters.openai.refusals import CallFailed
from service.adapters.openai.wire import Reading
from service.domain.errors import ChatMemoryError
from service.domain.turns import Delta, Prompt

TRAILER_SECONDS: Final = 2.0
"""For what follows the last word: the usage."""
DRAIN_SECONDS: Final = 0.1
"""For the end of the body; a connection serves again only after it."""


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One model asked one prompt; times are the event loop's."""

    prompt: Prompt
    streamed: bool
    started: float
    deadline: float


class Patience(msgspec.Struct, frozen=True, kw_only=True):
    """How long a silence is borne, in seconds."""

    first_token: float
    stall: float

    def was_given(self, call: Call) -> bool:
        """A call that had less time than this says nothing about the server."""
        return _now() - call.started >= self.first_token


class Listener:
    """One listener per stream."""

    def __init__(self, reading: Reading, opened: Opened, call: Call, patience: Patience) -> None:
        self._reading = reading
        self._sent_at = opened.sent_at
        self._call = call
        self._patience = patience
        self._silent_since = 0.0
        self._ended_at = 0.0

    async def deltas(self, chunks: AsyncGenerator[bytes]) -> AsyncGenerator[Delta]:
        """To the end of the body. Raises CallFailed, and what the reading raises."""
        decoder = EventDecoder()
        self._silent_since = _now()
        chunk: bytes | None = b""
        while chunk is not None:
            chunk = await self._next(chunks)
            heard = False
            for event in self._events(decoder, chunk):
                heard = True
                if self._reading.over:
                    break
                if (delta := self._take(event)) is not None:
                    yield delta
            # Comments are no sign of an answer. What our own reader takes is not counted.
            if heard:
                self._silent_since = _now()
            if self._reading.ended and not self._ended_at:
                self._ended_at = _now()

    def _events(self, decoder: EventDecoder, chunk: bytes | None) -> Iterator[Event]:
        try:
            yield from decoder.end() if chunk is None else decoder.feed(chunk)
        except ChatMemoryError:
            # As for a single event, below.
            if not self._reading.ended:
                raise

    def _take(self, event: Event) -> Delta | None:
        said_all = self._reading.ended
        try:
            return self._reading.take(event)
        except ChatMemoryError:
            # What follows the last word takes nothing of it back.
            if not said_all:
                raise
            return None

    async def _next(self, chunks: AsyncGenerator[bytes]) -> bytes | None:
        """None at the end of the body, or where the rest of it does not matter."""
        said_all = self._reading.ended or self._reading.over
        limit = min(self._limit(), self._call.deadline)
        try:
            async with asyncio.timeout_at(limit):
                return await anext(chunks, None)
        except TimeoutError as error:
            if said_all:
                return None
            # The deadline alone is the caller's matter.
            waiting = not self._reading.begun and self._patience.was_given(self._call)
            raise timed_out(outage=waiting or limit < self._call.deadline) from error
        except CallFailed:
            if said_all:
                return None
            raise

    def _limit(self) -> float:
        if self._reading.over:
            return self._ended_at + DRAIN_SECONDS
        if self._reading.ended:
            return self._ended_at + TRAILER_SECONDS
        if self._reading.begun:
            return self._silent_since + self._patience.stall
        return self._sent_at + self._patience.first_token


def _now() -> float:
    return asyncio.get_running_loop().time()
