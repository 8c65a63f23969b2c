"""The connection of a migration runner: its lock, its transactions, its errors."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final, LiteralString

import asyncpg

from service.adapters.postgres.migration_files import MigrationError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping

    Connection = asyncpg.Connection[asyncpg.Record]

# Any number will do, as long as no other use of advisory locks in this database takes it.
_LOCK_KEY: Final = 7_163_504_219_081
_LOCK_POLL_SECONDS: Final = 0.2
GRACE_SECONDS: Final = 5.0
VENDOR_ERRORS: Final = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
)
_HINTS: Final = {
    "55P03": "another session holds a lock on it: try again, or raise `-- migrate:timeout lock=`",
    "57014": "if it only needs longer, raise `-- migrate:timeout statement=`",
    "42P07": "if an earlier run was killed after it, IF NOT EXISTS lets this one pass",
}

_TRY_LOCK: Final[LiteralString] = "SELECT pg_try_advisory_lock($1)"
_UNLOCK: Final[LiteralString] = "SELECT pg_advisory_unlock($1)"


class MigrationDatabaseError(MigrationError):
    """The database cannot be reached, or refused something outside of the files."""


class MigrationLockError(MigrationError):
    """Another runner held the lock for all of the time that this one could wait."""


@asynccontextmanager
async def connected(
    connection_url: str,
    *,
    connect_timeout_seconds: float,
    command_timeout_seconds: float,
    server_settings: Mapping[str, str],
) -> AsyncGenerator[Connection]:
    """A connection for a while; vendor errors of that while leave as MigrationDatabaseError."""
    connection = await _connect(
        connection_url, connect_timeout_seconds, command_timeout_seconds, server_settings
    )
    try:
        yield connection
    except VENDOR_ERRORS as error:
        raise MigrationDatabaseError(f"the database failed: {reason(error)}") from error
    finally:
        with suppress(*VENDOR_ERRORS):
            await connection.close(timeout=GRACE_SECONDS)


@asynccontextmanager
async def lock_held(
    connection: Connection, *, wait_seconds: float, say: Callable[[str], None]
) -> AsyncGenerator[None]:
    """The lock of the runners, which belongs to the session; polled for, not queued for.

    A session that waits inside pg_advisory_lock has a snapshot open, and CREATE INDEX CONCURRENTLY
    of the session that has the lock would wait for that.
    """
    clock = asyncio.get_running_loop().time
    deadline = clock() + wait_seconds
    waiting = False
    while not await connection.fetchval(_TRY_LOCK, _LOCK_KEY):
        if clock() >= deadline:
            raise MigrationLockError(f"another runner is still at work after {wait_seconds:g} s")
        if not waiting:
            say("another runner is at work: waiting for it")
        waiting = True
        await asyncio.sleep(_LOCK_POLL_SECONDS)
    try:
        yield
    finally:
        with suppress(*VENDOR_ERRORS):  # The end of the session frees the lock as well.
            await connection.execute(_UNLOCK, _LOCK_KEY, timeout=GRACE_SECONDS)


@asynccontextmanager
async def transaction(connection: Connection) -> AsyncGenerator[None]:
    """As asyncpg's own, except that a failing ROLLBACK does not hide why it was needed."""
    await connection.execute("BEGIN")
    try:
        yield
    except BaseException:
        with suppress(*VENDOR_ERRORS):
            await connection.execute("ROLLBACK", timeout=GRACE_SECONDS)
        raise
    await connection.execute("COMMIT")


def reason(error: Exception) -> str:
    """The server's own sentence; its DETAIL is left out, since it quotes rows."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if not isinstance(error, asyncpg.PostgresError):
        return str(error) or type(error).__name__
    hint = _HINTS.get(error.sqlstate or "") or error.hint
    return f"{error.args[0]} ({error.sqlstate})" + (f"; {hint}" if hint else "")


async def _connect(
    connection_url: str,
    connect_timeout_seconds: float,
    command_timeout_seconds: float,
    server_settings: Mapping[str, str],
) -> Connection:
    try:
        return await asyncpg.connect(
            connection_url,
            timeout=connect_timeout_seconds,
            command_timeout=command_timeout_seconds,
            statement_cache_size=0,
            server_settings=dict(server_settings),
        )
    except ValueError:
        # The cause quotes what it could not parse, and that may be the password.
        raise MigrationDatabaseError("the connection URL is malformed") from None
    except VENDOR_ERRORS as error:
        raise MigrationDatabaseError(f"cannot connect: {reason(error)}") from error
