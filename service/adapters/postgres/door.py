"""One door to PostgreSQL: a bounded pool, bounded waits, translated errors."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

import asyncpg
import msgspec

from service.domain.errors import ArchiveRefused, ArchiveUnavailable
from service.domain.observations import PoolWaited
from service.ports import Observer

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

T = TypeVar("T")
Connection: TypeAlias = "PoolConnectionProxy[asyncpg.Record]"

REPEAT_PAUSE_SECONDS: Final = 0.02
"""Between a lost connection and the repeated work."""

VENDOR_ERRORS: Final = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    # Also what a connection says that the server ended while it was idle.
    asyncpg.InternalClientError,
    OSError,
)

CONTENT_STATES: Final = ("22", "23", "54", "P0001")
"""SQLSTATEs, by how they begin: data (also what the library cannot encode), integrity, limits of
the program, RAISE in a trigger."""

JSON_PASSTHROUGH: Final = bytes
"""JSON columns come and go as their text: the service encodes once and decodes once."""


class ArchiveLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Waits for PostgreSQL. ``call_seconds`` bounds a whole unit of work, acquiring included."""

    connections: int = 8
    call_seconds: float = 5.0
    connect_seconds: float = 2.0
    statement_seconds: float | None = None
    """Bound of each statement, a commit included; None: ``call_seconds``."""
    statement_cache: int = 256
    """0 behind PgBouncer in transaction mode."""


class PostgresDoor:
    """Runs units of work on one pool; opened without PostgreSQL being there."""

    def __init__(self, url: str, limits: ArchiveLimits, *, name: str, observer: Observer) -> None:
        self._url = url
        self._limits = limits
        self._name = name
        self._observer = observer
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None
        self._opening = asyncio.Lock()

    @asynccontextmanager
    async def connection(self) -> AsyncGenerator[Connection]:
        """Raises ArchiveUnavailable when PostgreSQL cannot be reached in time or refuses."""
        try:
            async with asyncio.timeout(self._limits.call_seconds):
                pool = await self._opened()
                asked = time.monotonic()
                async with pool.acquire() as connection:
                    waited = time.monotonic() - asked
                    self._observer.observe(PoolWaited(pool=self._name, seconds=waited))
                    yield connection
        except TimeoutError as error:
            raise ArchiveUnavailable("The archive did not answer in time.") from error
        except VENDOR_ERRORS as error:
            if (refused := refusal_of(error)) is not None:
                raise ArchiveRefused(refused) from error
            # Messages of the server may quote values; the class name does not.
            reason = f"The archive failed ({type(error).__name__})."
            raise ArchiveUnavailable(reason) from error

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[Connection]:
        async with self.connection() as connection, connection.transaction():
            yield connection

    @asynccontextmanager
    async def snapshot(self) -> AsyncGenerator[Connection]:
        """A transaction whose statements all see the same, and change nothing."""
        async with (
            self.connection() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            yield connection

    async def settled(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Run ``work`` in a transaction, and again where the connection was lost under it.

        Such a loss leaves open whether the transaction was committed: ``work`` must be able to
        tell, and have its effect once.
        """
        try:
            async with asyncio.timeout(self._limits.call_seconds):
                return await self._until_settled(work)
        except TimeoutError as error:
            raise ArchiveUnavailable("The archive did not answer in time.") from error

    async def close(self) -> None:
        if self._pool is None:
            return
        try:
            async with asyncio.timeout(self._limits.call_seconds):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()

    async def _until_settled(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        # Its own look at the time: a cancellation that a lost connection replaces ends no loop.
        deadline = time.monotonic() + self._limits.call_seconds
        in_doubt = False
        while True:
            try:
                async with self.connection() as connection:
                    in_doubt = True
                    async with connection.transaction():
                        return await work(connection)
            except ArchiveUnavailable as error:
                # A server that cannot be reached in the first place has not done anything.
                late = time.monotonic() >= deadline
                if late or not (in_doubt and _is_loss(error.__cause__)):
                    raise
            await asyncio.sleep(REPEAT_PAUSE_SECONDS)

    async def _opened(self) -> "asyncpg.Pool[asyncpg.Record]":
        if self._pool is not None:
            return self._pool
        async with self._opening:
            if self._pool is None:
                self._pool = await asyncpg.create_pool(
                    self._url,
                    min_size=0,
                    max_size=self._limits.connections,
                    timeout=self._limits.connect_seconds,
                    command_timeout=self._limits.statement_seconds or self._limits.call_seconds,
                    statement_cache_size=self._limits.statement_cache,
                    init=_prepare,
                    server_settings={
                        "jit": "off",
                        "application_name": "chat-memory",
                        # A network cut in a transaction must not hold its locks for hours.
                        "idle_in_transaction_session_timeout": str(
                            round(2000 * self._limits.call_seconds)
                        ),
                    },
                )
        return self._pool


def refusal_of(error: BaseException) -> str | None:
    """SQLSTATE of an error that is of the content: the same statement fails for ever.

    None for all others: those of connections, resources, locks, read-only servers, time-outs and
    of a schema that is not this release's. A unique key is not of the content either: the only
    one that may conflict is that of a message's id, which is passed over.
    """
    match error:
        case asyncpg.UniqueViolationError():
            return None
        case asyncpg.PostgresError():
            state = str(error.sqlstate or "")
            return state if state.startswith(CONTENT_STATES) else None
        case _:
            return None


def _is_loss(cause: BaseException | None) -> bool:
    """Whether the connection went away, rather than the server or this library refusing."""
    match cause:
        case TimeoutError():
            return False
        case OSError() | asyncpg.PostgresConnectionError():
            return True
        case asyncpg.AdminShutdownError() | asyncpg.CrashShutdownError():
            return True
        case asyncpg.CannotConnectNowError() | asyncpg.InternalClientError():
            return True
        case asyncpg.InterfaceError():
            # Arguments that do not fit are of this class too, and are ValueErrors.
            return not isinstance(cause, ValueError)
        case _:
            return False


async def _prepare(connection: Any) -> None:
    await connection.set_type_codec(
        "json",
        schema="pg_catalog",
        encoder=JSON_PASSTHROUGH,
        decoder=JSON_PASSTHROUGH,
        format="binary",
    )
