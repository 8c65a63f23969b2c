"""The command that imports a file of many sessions, in this process."""

import asyncio
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import IO, Final

from service.adapters.logs.configuration import configure
from service.adapters.logs.events import LogObserver
from service.adapters.tokens.vocabularies import Vocabularies
from service.bootstrap.ambient import SystemClock
from service.bootstrap.stores import open_store
from service.bootstrap.use_cases import importing_of
from service.core.counting import Counting
from service.core.import_files import FileImport, Progress
from service.domain.errors import InvalidRequest
from service.domain.sessions import DEFAULT_TENANT
from service.settings import Settings, SettingsError, missing_urls

READ_BYTES: Final = 256 * 1024
TERMINAL_PAUSE_SECONDS: Final = 0.2
PLAIN_PAUSE_SECONDS: Final = 10.0
"""Between two lines of progress, on a terminal and elsewhere."""


async def import_file(settings: Settings, name: str, *, skip_existing: bool) -> None:
    """Import a file, or the standard input for "-". Raises SettingsError, FileImportFailed."""
    missing_urls(settings)
    configure("warning", settings.log_format)
    clock, observer = SystemClock(), LogObserver()
    report = _Report()
    with _opened(name) as file:
        async with open_store(settings, clock=clock, observer=observer) as store:
            await store.check()
            counting = Counting(Vocabularies(), model=settings.openai_model)
            run = FileImport(
                importing_of(settings, store, counting),
                tenant=DEFAULT_TENANT,
                line_bytes_max=settings.import_line_bytes_max,
                skip_existing=skip_existing,
                tell=report.tell,
            )
            try:
                async with aclosing(_chunks(file)) as chunks:
                    await run.run(chunks)
            finally:
                # Also where it failed: what was imported before is there.
                report.end(run.progress)


class _Report:
    """Progress on the standard error: one line that changes, or now and then a plain one."""

    def __init__(self) -> None:
        self._began = self._told = time.monotonic()
        self._on_terminal = sys.stderr.isatty()
        self._pause = TERMINAL_PAUSE_SECONDS if self._on_terminal else PLAIN_PAUSE_SECONDS

    def tell(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self._told < self._pause:
            return
        self._told = now
        start, end = ("\r", "\x1b[K") if self._on_terminal else ("", "\n")
        self._write(f"{start}{self._line(progress)}{end}")

    def end(self, progress: Progress) -> None:
        start, end = ("\r", "\x1b[K\n") if self._on_terminal else ("", "\n")
        self._write(f"{start}imported: {self._line(progress)}{end}")

    def _line(self, progress: Progress) -> str:
        seconds = max(time.monotonic() - self._began, 0.001)
        skipped = f", {progress.skipped} sessions skipped" if progress.skipped else ""
        return (
            f"{progress.bytes:,} bytes, {progress.messages:,} messages, "
            f"{progress.sessions:,} sessions{skipped}, "
            f"{progress.messages / seconds:,.0f} messages/s"
        )

    def _write(self, text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()


def _opened(name: str) -> IO[bytes]:
    if name == "-":
        return open(sys.stdin.fileno(), "rb", closefd=False)
    try:
        return open(name, "rb")  # noqa: PTH123  # Both ways give one kind of file.
    except OSError as error:
        raise SettingsError(f"FILE: cannot be read ({type(error).__name__})") from None


async def _chunks(file: IO[bytes]) -> AsyncGenerator[bytes]:
    # Read in a thread: a pipe may have nothing for a long time.
    while chunk := await asyncio.to_thread(_read, file):
        yield chunk


def _read(file: IO[bytes]) -> bytes:
    try:
        return file.read(READ_BYTES)
    except OSError as error:
        raise InvalidRequest(f"The file cannot be read on ({type(error).__name__}).") from error
