"""Ends servers that an earlier run left on a data directory.

On Linux they die with their owner, but not at once; elsewhere they go on until somebody ends them.
Two servers on the same files would destroy them, so the next run makes sure before it starts one.
"""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

from service.dev.errors import DevError

_POLL_SECONDS: Final = 0.01
_KILL_SECONDS: Final = 5.0


async def end_leftovers(
    data: Path, program: str, stop_signal: signal.Signals, *, grace_seconds: float
) -> None:
    """Ends every process named `program` that works in `data`.

    Raises:
        DevError: One of them outlived even SIGKILL.
    """
    if await _end(data, program, stop_signal, within_seconds=grace_seconds):
        return
    if await _end(data, program, signal.SIGKILL, within_seconds=_KILL_SECONDS):
        return
    raise DevError(f"{program} of an earlier run still works in {data} and cannot be ended.")


async def _end(data: Path, program: str, how: signal.Signals, *, within_seconds: float) -> bool:
    for pid in _working_in(data, program):
        _send(pid, how)
    try:
        async with asyncio.timeout(within_seconds):
            while _working_in(data, program):  # noqa: ASYNC110  # No event tells of others.
                await asyncio.sleep(_POLL_SECONDS)
    except TimeoutError:
        return False
    return True


def _send(pid: int, how: signal.Signals) -> None:
    try:
        os.kill(pid, how)
    except ProcessLookupError:
        return


def _working_in(data: Path, program: str) -> list[int]:
    if sys.platform == "linux":
        processes = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
        return [pid for pid in processes if _works_in(pid, data, program)]
    return _written_down(data, program)


def _works_in(pid: int, data: Path, program: str) -> bool:
    """A server works in its data directory; that holds for PostgreSQL's workers too."""
    process = Path("/proc") / str(pid)
    try:
        name = (process / "comm").read_text().strip()
        return name == program[:15] and (process / "cwd").samefile(data)
    except OSError:  # It ended meanwhile, or is somebody else's.
        return False


def _written_down(data: Path, program: str) -> list[int]:
    """Without /proc: the process id that was written down, if it is (still) such a server's."""
    for name in ("postmaster.pid", "server.pid"):
        try:
            pid = int((data / name).read_text().splitlines()[0])
        except (OSError, ValueError, IndexError):
            continue
        asked = ["/bin/ps", "-p", str(pid), "-o", "comm="]
        said = subprocess.run(asked, capture_output=True, text=True, check=False)  # noqa: S603  # A number.
        if program in said.stdout:
            return [pid]
    return []
