"""PostgreSQL, and Redis with a replica to fail over to, that can be broken and come back."""

import contextlib
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
from redis.asyncio import Redis
from redis.exceptions import RedisError

from service.adapters.postgres.migrations import Migrator
from service.dev.postgres import EmbeddedPostgres
from service.dev.valkey import EmbeddedValkey
from tests.chaos.processes import signal_tree
from tests.support.polling import eventually
from tests.support.processes import free_port
from tests.support.servers import MIGRATIONS

CONNECTIONS_MAX = 40
TERMINATE = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'chat-memory'
"""


class Postgres:
    """Durable: what it lost at a SIGKILL it would lose in production."""

    def __init__(self, folder: Path) -> None:
        settings = {"max_connections": str(CONNECTIONS_MAX), "superuser_reserved_connections": "3"}
        self._server = EmbeddedPostgres(folder, port=free_port(), settings=settings)
        self._taken: list[asyncpg.Connection[Any]] = []

    @property
    def port(self) -> int:
        return self._server.port

    @property
    def url(self) -> str:
        return self._server.url

    async def start(self) -> None:
        await self._server.start()
        await Migrator(self.url, MIGRATIONS).up()

    async def stop(self) -> None:
        self.resume()
        await self.free()
        await self._server.stop()

    async def end(self) -> None:
        await self._server.stop()

    async def kill(self) -> None:
        await self._server.kill()

    async def revive(self) -> None:
        await self._server.start()

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    async def exhaust(self) -> None:
        """Take every connection, those that the service had included."""
        superuser = await asyncpg.connect(self._server.superuser_url, timeout=5)
        try:
            for _ in range(2 * CONNECTIONS_MAX):
                await superuser.execute(TERMINATE)
                try:
                    self._taken.append(await asyncpg.connect(self.url, timeout=5))
                except asyncpg.TooManyConnectionsError:
                    break
            await superuser.execute(TERMINATE)
        finally:
            await superuser.close()

    async def free(self) -> None:
        for connection in self._taken:
            with contextlib.suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                await connection.close(timeout=2)
        self._taken = []

    def _signal(self, number: signal.Signals) -> None:
        if self._server.pid is not None:
            signal_tree(self._server.pid, number)


class RedisPair:
    """A primary and its replica, which change places at a failover.

    The failover is the coordinated one: the primary takes no writes until the replica has all. Any
    other may lose what the replica had not got, and is promised to nobody.
    """

    def __init__(self, folder: Path, moved: Callable[[int], None]) -> None:
        self._servers = [
            EmbeddedValkey(folder / name, port=free_port()) for name in ("valkey-a", "valkey-b")
        ]
        self._moved = moved
        self._primary = 0

    @property
    def port(self) -> int:
        return self._servers[self._primary].port

    @property
    def url(self) -> str:
        return self._servers[self._primary].url

    async def start(self) -> None:
        for server in self._servers:
            await server.start()
        await self._follow()

    async def stop(self) -> None:
        for server in self._servers:
            if server.pid is not None:
                signal_tree(server.pid, signal.SIGCONT)
            await server.stop()

    async def end(self) -> None:
        await self._servers[self._primary].stop()

    async def kill(self) -> None:
        await self._servers[self._primary].kill()

    async def revive(self) -> None:
        await self._servers[self._primary].start()

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    async def fill(self) -> None:
        """No memory for anything more."""
        await self._set_memory("1mb")

    async def free(self) -> None:
        await self._set_memory("0")

    async def fail_over(self) -> bool:
        """Whether it took place: a replica that is not in step is no heir."""
        other = self._servers[1 - self._primary]
        async with self._client(self._primary) as client:
            try:
                await client.execute_command(
                    "FAILOVER", "TO", "127.0.0.1", other.port, "TIMEOUT", 2000
                )
            except RedisError:
                return False

            async def over() -> bool:
                info: Any = await client.info("replication")
                return info["master_failover_state"] == "no-failover"

            await eventually(over, 10)
            info: Any = await client.info("replication")
        if info["role"] != "slave":
            return False
        self._primary = 1 - self._primary
        self._moved(self.port)
        return True

    def _client(self, place: int) -> Redis:
        return Redis.from_url(self._servers[place].url, protocol=2, socket_timeout=5)

    async def _follow(self) -> None:
        async with self._client(1 - self._primary) as client:
            await client.execute_command("REPLICAOF", "127.0.0.1", self.port)

    async def _set_memory(self, size: str) -> None:
        async with self._client(self._primary) as client:
            await client.config_set("maxmemory", size)

    def _signal(self, number: signal.Signals) -> None:
        pid = self._servers[self._primary].pid
        if pid is not None:
            signal_tree(pid, number)
