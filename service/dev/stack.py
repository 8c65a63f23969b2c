"""Everything that `make run` starts beside the service itself."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from service.dev.errors import LocalModelUnavailable
from service.dev.homes import HOST, DirectoryLock
from service.dev.model import LocalModel
from service.dev.postgres import EmbeddedPostgres
from service.dev.valkey import EmbeddedValkey


class DevStack:
    """Starts what is missing: each given URL replaces its embedded server.

    Args:
        data_dir: What the servers keep, and the lock that allows one run at a time.
        database_url: None: an embedded PostgreSQL.
        redis_url: None: an embedded Valkey.
        with_model: Whether to start the local model.
        say: Takes each line of progress.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        database_url: str | None,
        redis_url: str | None,
        with_model: bool,
        say: Callable[[str], None],
    ) -> None:
        self._lock = DirectoryLock(data_dir)
        self._say = say
        self._database_url = database_url
        self._redis_url = redis_url
        self._postgres = EmbeddedPostgres(data_dir / "postgres") if database_url is None else None
        self._valkey = EmbeddedValkey(data_dir / "valkey") if redis_url is None else None
        self._model = LocalModel(data_dir / "model") if with_model else None

    @property
    def database_url(self) -> str:
        return self._postgres.url if self._postgres is not None else self._database_url or ""

    @property
    def redis_url(self) -> str:
        return self._valkey.url if self._valkey is not None else self._redis_url or ""

    @property
    def model(self) -> tuple[str, str] | None:
        """The base URL and the name of the local model; None where there is none."""
        if self._model is None or self._model.pid is None:
            return None
        return self._model.base_url, self._model.model

    @property
    def pids(self) -> dict[str, int]:
        """The servers that run, by name."""
        servers = {"postgres": self._postgres, "valkey": self._valkey, "model": self._model}
        return {name: server.pid for name, server in servers.items() if server and server.pid}

    async def start(self) -> None:
        """Returns when everything answers; a missing local model is said and passed over.

        Raises:
            DirectoryBusy: Another run has the data directory.
            DevError: A server cannot be started; the others were stopped again.
        """
        self._lock.take()
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stops everything; may be repeated, and called before `start`."""
        for server in (self._model, self._valkey, self._postgres):
            if server is not None:
                await server.stop()
        self._lock.free()

    async def _start(self) -> None:
        # All of them come to an end before an error is raised: none is left half started.
        outcomes = await asyncio.gather(
            self._start_postgres(),
            self._start_valkey(),
            self._start_model(),
            return_exceptions=True,
        )
        for outcome in outcomes:
            if outcome is not None:
                raise outcome

    async def _start_postgres(self) -> None:
        if self._postgres is None:
            self._say("PostgreSQL: the one of DATABASE_URL")
            return

        seconds = await _timed(self._postgres.start())
        what = f"PostgreSQL {await self._postgres.version()}"
        self._say(f"{what} ready on {HOST}:{self._postgres.port} ({seconds:.1f} s)")

    async def _start_valkey(self) -> None:
        if self._valkey is None:
            self._say("Redis: the one of REDIS_URL")
            return

        seconds = await _timed(self._valkey.start())
        what = f"Valkey {await self._valkey.version()}"
        self._say(f"{what} ready on {HOST}:{self._valkey.port} ({seconds:.1f} s)")

    async def _start_model(self) -> None:
        if self._model is None:
            return

        try:
            seconds = await _timed(self._model.start())
        except LocalModelUnavailable as error:
            self._say(str(error))
            return
        self._say(f"Local model {self._model.model} ready ({seconds:.1f} s)")


async def _timed(start: Awaitable[None]) -> float:
    began = time.monotonic()
    await start
    return time.monotonic() - began
