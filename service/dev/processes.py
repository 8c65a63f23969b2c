"""Starts, watches and ends child servers."""

import asyncio
import os
import re
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from service.dev import launch
from service.dev.errors import ServerFailed
from service.dev.users import User

# Nothing of our own environment (PG*, LD_*, LANG) shall change what a server does.
PLAIN_ENVIRONMENT: Final[Mapping[str, str]] = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}

_POLL_SECONDS: Final = 0.01
_LOG_TAIL_LINES: Final = 20
_LOG_TAIL_BYTES: Final = 16_384


@dataclass(frozen=True, kw_only=True)
class Program:
    name: str
    command: tuple[str, ...]
    """The first item is the full path."""
    log: Path
    directory: Path
    """Entered before the user changes: it need not be reachable for `user`."""
    user: User | None
    death_signal: signal.Signals = signal.SIGKILL
    """What the kernel sends to the program when this process dies (Linux)."""
    environment: Mapping[str, str] | None = None
    """None: the one of this process."""


class Child:
    """One running program. Ended by `stop` or `kill`, which can be repeated."""

    def __init__(self, program: Program, process: asyncio.subprocess.Process) -> None:
        self._program = program
        self._process = process

    @classmethod
    async def start(cls, program: Program, *, stdin: int = asyncio.subprocess.DEVNULL) -> "Child":
        with program.log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *_launch_command(program),
                stdin=stdin,
                stdout=log,
                stderr=asyncio.subprocess.STDOUT,
                cwd=program.directory,
                env=program.environment,
                # A session of its own: the terminal's Ctrl-C is for us, and we drain first.
                start_new_session=True,
            )
        return cls(program, process)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.returncode is None

    async def until(self, ready: Callable[[], Awaitable[bool]], *, within_seconds: float) -> None:
        """Waits until `ready` says so.

        Raises:
            ServerFailed: It ended, or was not ready in time; with the end of its log.
        """
        try:
            async with asyncio.timeout(within_seconds):
                while not await ready():
                    if not self.running:
                        raise self._failure(f"ended with status {self._process.returncode}")
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError as error:
            raise self._failure(f"was not ready after {within_seconds:.0f} s") from error

    async def finish(self, stdin: bytes | None, *, within_seconds: float) -> None:
        """Waits for the end of a program that is to end by itself, with status 0."""
        try:
            async with asyncio.timeout(within_seconds):
                await self._process.communicate(stdin)
        except TimeoutError as error:
            raise self._failure(f"was not done after {within_seconds:.0f} s") from error
        finally:
            await self.kill()
        if self._process.returncode != 0:
            raise self._failure(f"ended with status {self._process.returncode}")

    async def stop(self, stop_signal: signal.Signals, *, grace_seconds: float) -> None:
        """Asks the program to end, and ends it where it does not."""
        if not self.running:
            return

        self._process.send_signal(stop_signal)
        try:
            async with asyncio.timeout(grace_seconds):
                await self._process.wait()
        except TimeoutError:
            await self.kill()

    async def kill(self) -> None:
        """SIGKILL, to this process alone; its own children have to notice."""
        if self.running:
            self._process.kill()
            await self._process.wait()

    def _failure(self, what: str) -> ServerFailed:
        log = self._program.log
        return ServerFailed(self._program.name, what, log, _last_lines(log))


async def run(program: Program, *, stdin: bytes | None = None, within_seconds: float) -> None:
    """Runs a program to its end.

    Raises:
        ServerFailed: Its status was not 0, or it took too long.
    """
    how = asyncio.subprocess.DEVNULL if stdin is None else asyncio.subprocess.PIPE
    child = await Child.start(program, stdin=how)
    await child.finish(stdin, within_seconds=within_seconds)


async def version_of(binary: Path) -> str:
    """The first version number that the program says it has."""
    process = await asyncio.create_subprocess_exec(
        str(binary),
        "--version",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    said, _ = await process.communicate()
    found = re.search(r"\d+(\.\d+)+", said.decode())
    return found.group() if found else "?"


def _launch_command(program: Program) -> list[str]:
    uid, gid = program.user or (-1, -1)
    identity = (os.getpid(), program.death_signal.value, uid, gid)
    launcher = [sys.executable, "-I", "-S", launch.__file__]
    return [*launcher, *(str(number) for number in identity), *program.command]


def _last_lines(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    return "\n".join(lines[-_LOG_TAIL_LINES:])
