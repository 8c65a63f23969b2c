"""Importing: the past of a session, line by line, in one transaction into the archive."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from datetime import UTC, datetime
from typing import Final

import msgspec

from service.core.counting import Counting
from service.core.import_lines import (
    ImportLine,
    Numbered,
    checked_body,
    decode_line,
    empty_body,
    in_line,
    split_lines,
)
from service.core.recording import check_session
from service.domain.errors import (
    IdempotencyKeyReused,
    InvalidRequest,
    InvalidValue,
    TooLarge,
)
from service.domain.ids import EPOCH, MILLISECOND, MessageId, check_id, next_id, time_of
from service.domain.messages import MessageBody, encode_body
from service.ports import (
    Import,
    Imported,
    ImportedRow,
    ImportRun,
    Imports,
)

BATCH_LINES_MAX: Final = 1000
BATCH_BYTES_MAX: Final = 4 * 1024 * 1024
"""What is inserted at once; the last line may pass it by its own length."""
STALL_SECONDS: Final = 10.0
"""Longest wait for the next bytes of a body."""


class ImportLimits(msgspec.Struct, frozen=True, kw_only=True):
    message_bytes_max: int
    line_bytes_max: int
    bytes_max: int


class NoImports:
    """Imports of a store that keeps nothing for good."""

    def open(self, command: Import) -> AbstractAsyncContextManager[ImportRun]:
        del command
        raise InvalidValue.of("session_id", "this store has no archive")


class Importing:
    """Fills empty sessions with what was said elsewhere or earlier."""

    def __init__(self, imports: Imports, counting: Counting, limits: ImportLimits) -> None:
        self._imports = imports
        self._counting = counting
        self._limits = limits
        self._decoder: msgspec.json.Decoder[ImportLine] = msgspec.json.Decoder(ImportLine)

    async def stream(
        self, command: Import, chunks: AsyncIterator[bytes], *, announced: int | None = None
    ) -> Imported:
        """Import a body of JSON Lines, all of it or nothing.

        The body is its call's fingerprint, so a repeated call is read to its end as well. Raises
        InvalidRequest, InvalidValue and TooLarge naming the line, PreconditionFailed for a session
        with messages, SessionBusy and RequestRunning beside another import, Overloaded,
        IdempotencyKeyReused, SessionNotFound. ``announced``: its length, where the client told it.
        """
        self._check_size(announced or 0)
        digest = hashlib.sha256(f"{command.user_id!r}\n".encode())
        async with (
            aclosing(self._bounded(chunks, digest.update)) as body,
            aclosing(split_lines(body, line_bytes_max=self._limits.line_bytes_max)) as texts,
            aclosing(self._decoded(texts)) as lines,
        ):
            return await self.run(command, lines, body, digest.hexdigest)

    async def run(
        self,
        command: Import,
        lines: AsyncIterator[Numbered],
        body: AsyncIterator[bytes] | None = None,
        fingerprint: Callable[[], str] = str,
    ) -> Imported:
        """Import lines that were taken apart before; errors as of ``stream``.

        ``body`` is what a repeated call reads instead of the lines; ``fingerprint`` is asked when
        either has ended.
        """
        check_session(command.ref)
        if command.user_id is not None:
            check_id(command.user_id, "user_id")
        async with self._imports.open(command) as run:
            done = run.done
            if done is None:
                imported = await self._fill(run, lines)
                await run.finish(imported, fingerprint())
                return imported
        # Its body is read when nothing is held for it any more.
        return await _repeated(done, body, fingerprint)

    async def _fill(self, run: ImportRun, lines: AsyncIterator[Numbered]) -> Imported:
        times = _Times(run)
        batch: list[Numbered] = []
        size = 0
        async for numbered in lines:
            batch.append(numbered)
            size += numbered.size
            if len(batch) == BATCH_LINES_MAX or size >= BATCH_BYTES_MAX:
                await self._store(run, times, batch)
                batch, size = [], 0
        if batch:
            await self._store(run, times, batch)
        if times.first is None or times.last is None:
            raise empty_body()
        return Imported(imported=times.count, first_id=times.first, last_id=times.last)

    async def _store(self, run: ImportRun, times: "_Times", batch: list[Numbered]) -> None:
        bytes_max = self._limits.message_bytes_max
        bodies = [checked_body(one.line, one.number, bytes_max=bytes_max) for one in batch]
        rows = [
            times.row(numbered, body)
            for numbered, body in zip(batch, await self._counting.all_counted(bodies), strict=True)
        ]
        await run.store(rows)
        # The store may answer at once: others get their turn all the same.
        await asyncio.sleep(0)

    async def _decoded(self, texts: AsyncIterator[tuple[int, bytes]]) -> AsyncGenerator[Numbered]:
        async for number, text in texts:
            yield Numbered(number, len(text), decode_line(self._decoder, number, text))

    async def _bounded(
        self, chunks: AsyncIterator[bytes], note: Callable[[bytes], None]
    ) -> AsyncGenerator[bytes]:
        """The chunks, each within the time, and together within the size."""
        size, ahead = 0, aiter(chunks)
        while True:
            try:
                async with asyncio.timeout(STALL_SECONDS):
                    chunk = await anext(ahead)
            except StopAsyncIteration:
                return
            except TimeoutError as error:
                raise InvalidRequest(
                    f"No more of the body came for {STALL_SECONDS:g} s."
                ) from error
            size += len(chunk)
            self._check_size(size)
            note(chunk)
            yield chunk

    def _check_size(self, size: int) -> None:
        if size > self._limits.bytes_max:
            raise TooLarge.of("body", f"must be at most {self._limits.bytes_max} bytes")


class _Times:
    """Gives each message its id and its time."""

    def __init__(self, run: ImportRun) -> None:
        self._now = time_of(run.now_milliseconds)
        self._latest = run.latest_milliseconds
        self._time = time_of(self._latest)
        self._previous = run.above
        self.first: MessageId | None = None
        self.last: MessageId | None = None
        self.count = 0

    def row(self, numbered: Numbered, body: MessageBody) -> ImportedRow:
        """Raises InvalidValue for a time before 1970 or after the import's start."""
        time = numbered.line.created_at
        if time is not None:
            self._time = self._checked(time, in_line(numbered.number, "created_at"))
        # Rounded up, as a time that is asked for is: `from` this time finds the message.
        milliseconds = min(-((EPOCH - self._time) // MILLISECOND), self._latest)
        identity = self._previous = next_id(self._previous, milliseconds)
        self.first = self.first or identity
        self.last = identity
        self.count += 1
        stored = msgspec.structs.replace(body, said_at=self._time)
        return ImportedRow(
            id=identity, role=body.role, body=encode_body(stored.without_time_of(identity))
        )

    def _checked(self, time: datetime, field: str) -> datetime:
        if time.tzinfo is None:
            raise InvalidValue.of(field, "needs a time zone, such as Z")
        if time < EPOCH:
            raise InvalidValue.of(field, "must not be before 1970")
        if time > self._now:
            raise InvalidValue.of(field, "must not be in the future")
        return time.astimezone(UTC)


async def _repeated(
    done: Imported, body: AsyncIterator[bytes] | None, fingerprint: Callable[[], str]
) -> Imported:
    if body is not None:
        async for _ in body:
            pass
    if fingerprint() != done.fingerprint:
        raise IdempotencyKeyReused
    return done
