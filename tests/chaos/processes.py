"""Processes of the service that come back when they end, however they end."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx

from tests.support.polling import eventually
from tests.support.processes import ROOT, free_port

END_SECONDS = 15.0
"""Well above SHUTDOWN_GRACE_SECONDS of these runs."""


START_SECONDS = 10.0
"""Until then Python may not have come to the handling of signals."""


class ServiceProcess:
    """``python -m MODULE WORDS``, started again whenever it has ended."""

    def __init__(
        self,
        name: str,
        words: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        *,
        module: str = "service",
    ) -> None:
        self.name = name
        self.port, self.ops_port = free_port(), free_port()
        self.log = folder / f"{name}.log"
        self.unasked_ends: list[str] = []
        self.killed_at: list[float] = []
        self._command = [sys.executable, "-m", module, *words]
        clean = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
        own = {"PORT": str(self.port), "OPS_PORT": str(self.ops_port)}
        self._environment = clean | own | dict(environment)
        self._process: asyncio.subprocess.Process | None = None
        self._may_run = asyncio.Event()
        self._asked = False
        self._started_at = 0.0
        self._stopping = False
        self._keeping: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._may_run.set()
        self._keeping = asyncio.create_task(self._keep())

    async def until_ready(self, within_seconds: float = 60) -> None:
        async with httpx.AsyncClient() as http:

            async def ready() -> bool:
                try:
                    url = f"http://127.0.0.1:{self.ops_port}/health/ready"
                    return (await http.get(url)).status_code == 200
                except httpx.TransportError:
                    return False

            await eventually(ready, within_seconds)

    def kill(self) -> None:
        """SIGKILL; it stays away until ``revive``."""
        self._may_run.clear()
        self._asked = True
        self.killed_at.append(time.monotonic())
        self._send(signal.SIGKILL)

    async def end(self) -> None:
        """SIGTERM, and it stays away until ``revive``. One that does not end cleanly is noted."""
        self._may_run.clear()
        self._asked = True
        process = self._process
        if process is None:
            return
        self._send(signal.SIGTERM)
        try:
            status = await asyncio.wait_for(process.wait(), END_SECONDS)
        except TimeoutError:
            self._send(signal.SIGKILL)
            self.unasked_ends.append(f"{self.name} did not end at SIGTERM")
        else:
            young = time.monotonic() - self._started_at < START_SECONDS
            if status != 0 and not (young and status == -signal.SIGTERM):
                self.unasked_ends.append(f"{self.name} ended with status {status} at SIGTERM")

    def revive(self) -> None:
        self._may_run.set()

    def pause(self) -> None:
        self._send(signal.SIGSTOP)

    def resume(self) -> None:
        self._send(signal.SIGCONT)

    async def stop(self) -> int | None:
        """SIGTERM, and its exit status; -9 where it had to be killed."""
        self._stopping = True
        self._may_run.set()
        process = self._process
        if process is not None:
            self._send(signal.SIGCONT)
            self._send(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), 30)
            except TimeoutError:
                self._send(signal.SIGKILL)
        if self._keeping is not None:
            await self._keeping
        return None if process is None else process.returncode

    async def _keep(self) -> None:
        with self.log.open("ab") as output:
            while not self._stopping:
                self._asked = False
                self._started_at = time.monotonic()
                self._process = await asyncio.create_subprocess_exec(
                    *self._command,
                    cwd=ROOT,
                    env=self._environment,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                )
                status = await self._process.wait()
                if not self._asked and not self._stopping:
                    self.unasked_ends.append(f"{self.name} ended with status {status}")
                    await asyncio.sleep(0.2)  # What is wrong at once is not to fill the machine.
                await self._may_run.wait()

    def _send(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)


def signal_tree(pid: int, number: signal.Signals) -> None:
    """To a server and its children: PostgreSQL's are sessions of their own."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for one in (pid, *map(int, children)):
        try:
            os.kill(one, number)
        except ProcessLookupError:
            continue
