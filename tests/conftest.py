"""Fixtures that many folders share. Servers are real and live as long as the run."""

import os
from collections.abc import AsyncGenerator

import pytest
from redis.asyncio import Redis

from service.settings import Settings
from tests.support.servers import PostgresServer, postgres_server, redis_server

os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")


@pytest.fixture(scope="session")
async def postgres(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[PostgresServer]:
    async with postgres_server(tmp_path_factory.mktemp("postgres")) as server:
        yield server


@pytest.fixture(scope="session")
async def redis_of_run(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[str]:
    async with redis_server(tmp_path_factory.mktemp("valkey")) as url:
        yield url


@pytest.fixture
async def database_url(postgres: PostgresServer) -> AsyncGenerator[str]:
    """A migrated database of the test's own."""
    async with postgres.database(migrated=True) as url:
        yield url


@pytest.fixture
async def empty_database_url(postgres: PostgresServer) -> AsyncGenerator[str]:
    async with postgres.database(migrated=False) as url:
        yield url


@pytest.fixture
async def redis_url(redis_of_run: str) -> str:
    """The run's Redis, emptied."""
    async with Redis.from_url(redis_of_run, protocol=2) as client:
        await client.flushdb()
    return redis_of_run


@pytest.fixture
def hybrid_settings(database_url: str, redis_url: str) -> Settings:
    return Settings(store="hybrid", database_url=database_url, redis_url=redis_url)
