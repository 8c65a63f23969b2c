"""The attempts of one call: opened by the client with its retries, read here, in one budget."""

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing, contextmanager
from typing import Any, Final

from service.adapters.openai.client import Client, ModelSettings, Opened, Sending, timed_out
from service.adapters.openai.listening import Call, Listener, Patience
from service.adapters.openai.refusals import CallFailed
from service.adapters.openai.wire import ANSWER_BYTES_MAX, WireFormat, too_long
from service.domain.errors import ChatMemoryError
from service.domain.turns import Answer, Delta

REPEAT_PAUSE_SECONDS: Final = 0.3
"""Before an attempt is repeated whose answer broke, if it was the first; twice as long after each
further one, the client's too. With the client's own pauses (from 0.375 s to 0.5 s before its first
repeat) every pause is longer than the one before it."""
REPEAT_PAUSE_SECONDS_MAX: Final = 8.0
BODY_BYTES_MAX: Final = 2 * ANSWER_BYTES_MAX
"""Of an answer that comes at once: its text is escaped there."""


class Attempts:
    """Asks until an answer came through whole, or its first piece did."""

    def __init__(self, client: Client, wire: WireFormat, settings: ModelSettings) -> None:
        self._client = client
        self._wire = wire
        self._max_retries = settings.max_retries
        self._patience = Patience(
            first_token=settings.first_token_seconds, stall=settings.stall_seconds
        )

    async def pieces(self, call: Call, sending: Sending) -> AsyncGenerator[Delta | Answer]:
        """Deltas where the call is streamed, and the answer. Raises CallFailed.

        Closing the generator closes the connection, so that the server stops.
        """
        body = self._wire.body(call.prompt, streamed=call.streamed)
        left = self._max_retries + 1
        while True:
            opened = await self._open(call, body, sending, max_retries=left - 1)
            left -= opened.attempts
            pause = _pause_after(self._max_retries + 1 - left)
            told = False
            try:
                async with aclosing(self._read(opened, call)) as pieces:
                    async for piece in pieces:
                        told = True
                        yield piece
            except CallFailed as failed:
                out_of_time = _now() + pause >= call.deadline
                if told or left < 1 or out_of_time or not failed.error.may_retry:
                    raise
            else:
                return
            finally:
                await opened.close()
            await asyncio.sleep(pause)

    async def _open(
        self, call: Call, body: dict[str, Any], sending: Sending, *, max_retries: int
    ) -> Opened:
        patience = self._patience.first_token if call.streamed else call.deadline - _now()
        try:
            return await self._client.post(
                self._wire.path,
                body,
                sending,
                max_retries=max_retries,
                read_seconds=max(patience, 0),
                deadline=call.deadline,
            )
        except TimeoutError as error:
            raise timed_out(outage=self._patience.was_given(call)) from error

    async def _read(self, opened: Opened, call: Call) -> AsyncGenerator[Delta | Answer]:
        with _wire_errors():
            async with aclosing(self._client.chunks(opened)) as chunks:
                if call.streamed:
                    reading = self._wire.reading(call.prompt.model)
                    listener = Listener(reading, opened, call, self._patience)
                    async for delta in listener.deltas(chunks):
                        yield delta
                    answer = reading.answer()
                else:
                    content = await self._whole(chunks, call)
                    answer = self._wire.read_answer(content, call.prompt.model)
            yield answer

    async def _whole(self, chunks: AsyncGenerator[bytes], call: Call) -> bytes:
        content = bytearray()
        try:
            async with asyncio.timeout_at(call.deadline):
                async for chunk in chunks:
                    content += chunk
                    if len(content) > BODY_BYTES_MAX:
                        raise too_long()
        except TimeoutError as error:
            raise timed_out(outage=self._patience.was_given(call)) from error
        return bytes(content)


@contextmanager
def _wire_errors() -> Generator[None]:
    """What the server said or left out is no outage: it was there to say it."""
    try:
        yield
    except ChatMemoryError as error:
        raise CallFailed(error, outage=False) from error.__cause__


def _pause_after(attempts: int) -> float:
    return min(REPEAT_PAUSE_SECONDS * 2 ** (attempts - 1), REPEAT_PAUSE_SECONDS_MAX)


def _now() -> float:
    return asyncio.get_running_loop().time()
