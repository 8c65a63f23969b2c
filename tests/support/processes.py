"""The service as real processes."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from tests.support.polling import eventually

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Running:
    """One process of the service and where it listens."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, ops_port: int, log: Path):
        self.process = process
        self.url = f"http://127.0.0.1:{port}"
        self.ops_url = f"http://127.0.0.1:{ops_port}"
        self.log = log

    async def until_ready(self, within_seconds: float = 60) -> None:
        async with httpx.AsyncClient() as http:

            async def ready() -> bool:
                if self.process.returncode is not None:
                    raise RuntimeError(self.log.read_text("utf-8")[-4000:])
                try:
                    response = await http.get(f"{self.ops_url}/health/ready")
                except httpx.TransportError:
                    return False
                return response.status_code == 200

            await eventually(ready, within_seconds)

    async def ended(self, within_seconds: float = 40) -> int:
        return await asyncio.wait_for(self.process.wait(), within_seconds)

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)


@asynccontextmanager
async def service(
    *words: str, environment: Mapping[str, str], folder: Path
) -> AsyncGenerator[Running]:
    """``python -m service WORDS``; killed at the end if it still runs."""
    port, ops_port = free_port(), free_port()
    log = folder / f"{words[0]}-{ops_port}.log"
    # Nothing of the machine's own settings may reach the process.
    clean = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    own = {"PORT": str(port), "OPS_PORT": str(ops_port)}
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "service",
            *words,
            cwd=ROOT,
            env=clean | own | dict(environment),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        yield Running(process, port, ops_port, log)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
