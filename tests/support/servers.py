"""The servers that tests run on: those that are set, else containers, else embedded ones.

In this order, and never a silent skip: TEST_DATABASE_URL / TEST_REDIS_URL when set; a Docker engine
when one answers; the embedded servers of ``make run``.
"""

import os
import secrets
import socket
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from urllib.parse import SplitResult, urlsplit, urlunsplit

import asyncpg
from testcontainers.core.container import DockerContainer
from testcontainers.core.wait_strategies import LogMessageWaitStrategy

from service.adapters.postgres.migrations import Migrator
from service.dev.postgres import EmbeddedPostgres
from service.dev.valkey import EmbeddedValkey
from tests.support.polling import eventually

POSTGRES_IMAGE = "pgvector/pgvector:pg17"
VALKEY_IMAGE = "valkey/valkey:8"
MIGRATIONS = Path(__file__).parents[2] / "migrations"


def docker_answers() -> bool:
    """Whether a Docker engine answers a ping where DOCKER_HOST or its default says."""
    place = urlsplit(os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock"))
    try:
        with _connected(place) as connection:
            connection.sendall(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")
            return b" 200 " in connection.recv(64)
    except OSError:
        return False


def _connected(place: SplitResult) -> socket.socket:
    if place.scheme != "unix":
        address = (place.hostname or "127.0.0.1", place.port or 2375)
        return socket.create_connection(address, timeout=2)
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(2)
    try:
        connection.connect(place.path)
    except OSError:
        connection.close()
        raise
    return connection


class PostgresServer:
    """A server whose ``url`` is that of an ordinary role which may create databases."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._template: str | None = None

    @asynccontextmanager
    async def database(self, *, migrated: bool, encoding: str | None = None) -> AsyncGenerator[str]:
        """URL of a new database of its own, dropped afterwards."""
        name = f"test_{secrets.token_hex(6)}"
        if encoding is not None:
            options = f"TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'"
        else:
            template = await self._migrated_template() if migrated else "template1"
            options = f'TEMPLATE "{template}"'
        await self._execute(f'CREATE DATABASE "{name}" {options}')
        try:
            if migrated and encoding is not None:
                await Migrator(self._of(name), MIGRATIONS).up()
            yield self._of(name)
        finally:
            await self._execute(f'DROP DATABASE "{name}" WITH (FORCE)')

    async def close(self) -> None:
        if self._template is not None:
            await self._execute(f'DROP DATABASE "{self._template}" WITH (FORCE)')

    async def _migrated_template(self) -> str:
        if self._template is None:
            name = f"template_{secrets.token_hex(6)}"
            await self._execute(f'CREATE DATABASE "{name}"')
            await Migrator(self._of(name), MIGRATIONS).up()
            self._template = name
        return self._template

    async def _execute(self, statement: str) -> None:
        """Tried again while the server's autovacuum is in the database, which may not be ended."""
        connection = await asyncpg.connect(self._url, timeout=10)

        async def executed() -> bool:
            try:
                await connection.execute(statement)
            except (asyncpg.InsufficientPrivilegeError, asyncpg.ObjectInUseError):
                return False
            return True

        try:
            await eventually(executed, within_seconds=20)
        finally:
            await connection.close()

    def _of(self, database: str) -> str:
        return urlunsplit(urlsplit(self._url)._replace(path=f"/{database}"))


@asynccontextmanager
async def postgres_server(data_dir: Path) -> AsyncGenerator[PostgresServer]:
    async with AsyncExitStack() as stack:
        url = os.environ.get("TEST_DATABASE_URL")
        if not url and docker_answers():
            url = await _postgres_container(stack)
        if not url:
            embedded = EmbeddedPostgres(data_dir, durable=False, role_options="CREATEDB")
            await embedded.start()
            stack.push_async_callback(embedded.stop)
            url = embedded.url
        server = PostgresServer(url)
        stack.push_async_callback(server.close)
        yield server


@asynccontextmanager
async def redis_server(data_dir: Path) -> AsyncGenerator[str]:
    """URL of a server with an append-only file, which the tests empty as they like."""
    async with AsyncExitStack() as stack:
        url = os.environ.get("TEST_REDIS_URL")
        if not url and docker_answers():
            container = DockerContainer(VALKEY_IMAGE).with_exposed_ports(6379)
            container.with_command("valkey-server --appendonly yes")
            container.waiting_for(LogMessageWaitStrategy("Ready to accept connections"))
            stack.enter_context(container)
            url = (
                f"redis://{container.get_container_host_ip()}:{container.get_exposed_port(6379)}/0"
            )
        if not url:
            embedded = EmbeddedValkey(data_dir)
            await embedded.start()
            stack.push_async_callback(embedded.stop)
            url = embedded.url
        yield url


async def _postgres_container(stack: AsyncExitStack) -> str:
    """A container whose tests work as an ordinary role, like the embedded server's."""
    container = DockerContainer(POSTGRES_IMAGE).with_exposed_ports(5432)
    container.with_env("POSTGRES_PASSWORD", "test")
    # The server starts twice: for its set-up, then for good.
    container.waiting_for(
        LogMessageWaitStrategy("database system is ready to accept connections", times=2)
    )
    stack.enter_context(container)
    place = f"{container.get_container_host_ip()}:{container.get_exposed_port(5432)}"
    connection = await asyncpg.connect(f"postgresql://postgres:test@{place}/postgres", timeout=30)
    try:
        await connection.execute(
            "CREATE ROLE chat_memory LOGIN PASSWORD 'test' NOSUPERUSER NOBYPASSRLS CREATEDB"
        )
        await connection.execute("CREATE DATABASE chat_memory OWNER chat_memory")
    finally:
        await connection.close()
    return f"postgresql://chat_memory:test@{place}/chat_memory"
