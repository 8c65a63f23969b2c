"""The migration runner: plain SQL files, one connection, one lock, one record per file."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final, LiteralString

import msgspec

from service.adapters.postgres.migration_files import (
    Migration,
    MigrationError,
    MigrationFileError,
    Section,
    Statement,
    read_migrations,
)
from service.adapters.postgres.migration_session import (
    GRACE_SECONDS,
    VENDOR_ERRORS,
    MigrationDatabaseError,
    MigrationLockError,
    connected,
    lock_held,
    reason,
    transaction,
)
from service.adapters.postgres.migration_status import (
    MigrationState,
    MigrationStatus,
    SchemaMismatchError,
    expected_versions,
    read_status,
    refuse,
    schema_problem,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from service.adapters.postgres.migration_session import Connection

__all__ = [
    "MigrationDatabaseError",
    "MigrationError",
    "MigrationFileError",
    "MigrationLockError",
    "MigrationState",
    "MigrationStatementError",
    "MigrationStatus",
    "Migrator",
    "SchemaMismatchError",
    "expected_versions",
    "schema_problem",
]

_CREATE_TABLE: Final[LiteralString] = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    version    int PRIMARY KEY,
    name       text NOT NULL,
    checksum   text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)
"""
_INSERT: Final[LiteralString] = """
INSERT INTO schema_migrations (version, name, checksum) VALUES ($1, $2, $3)
"""
_DELETE: Final[LiteralString] = "DELETE FROM schema_migrations WHERE version = $1"
_SET_LIMITS: Final[LiteralString] = """
SELECT set_config('lock_timeout', $1, $3), set_config('statement_timeout', $2, $3)
"""
_SELECT_INVALID_INDEX: Final[LiteralString] = """
SELECT indexrelid::regclass::text FROM pg_index
WHERE indexrelid = to_regclass($1) AND NOT indisvalid
"""


class MigrationStatementError(MigrationError):
    """A statement failed; `sqlstate` is None where it was not the server that refused it."""

    def __init__(self, file_name: str, line: int, error: Exception) -> None:
        super().__init__(f"{file_name} line {line}: {reason(error)}")
        self.file_name = file_name
        self.line = line
        self.sqlstate = getattr(error, "sqlstate", None)


class _Step(msgspec.Struct, frozen=True, kw_only=True):
    """One file in one direction, with the change to schema_migrations that belongs to it."""

    file_name: str
    section: Section
    record: LiteralString
    record_arguments: tuple[object, ...]


class Migrator:
    """Applies and undoes the migrations of a folder; every error it raises is a MigrationError.

    A transactional file and its record commit together, so a failed one leaves nothing. A
    `transaction:false` file is recorded after it ran: written with IF [NOT] EXISTS it can be run
    again wherever its runner was killed; an invalid index left behind is dropped and reported.

    One runner works at a time. The lock belongs to the session, so the URL must lead to the server
    itself and not to PgBouncer in transaction mode. It is polled for: a session that waits inside
    pg_advisory_lock holds a snapshot, which CREATE INDEX CONCURRENTLY of the other waits for.
    """

    def __init__(
        self,
        connection_url: str,
        directory: Path,
        *,
        lock_timeout_seconds: float = 5.0,
        statement_timeout_seconds: float = 600.0,
        advisory_wait_seconds: float = 60.0,
        connect_timeout_seconds: float = 10.0,
        server_settings: Mapping[str, str] | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`server_settings` hold for the whole session, such as the one that lifts row security."""
        self._connection_url = connection_url
        self._directory = directory
        self._lock_timeout_milliseconds = _milliseconds(lock_timeout_seconds)
        self._statement_timeout_milliseconds = _milliseconds(statement_timeout_seconds)
        self._advisory_wait_seconds = advisory_wait_seconds
        self._connect_timeout_seconds = connect_timeout_seconds
        self._server_settings = {
            "application_name": "chat-memory-migrate",
            **(server_settings or {}),
            "lock_timeout": str(self._lock_timeout_milliseconds),
            "statement_timeout": str(self._statement_timeout_milliseconds),
        }
        self._say = say

    async def up(self, to: int | None = None) -> list[int]:
        """Apply what is pending, up to and with version `to`; return what was applied.

        A database that is ahead of the files is left alone: an older release may be rolled out
        again. Files already applied in this call stay so when a later one fails.
        """
        migrations = read_migrations(self._directory)
        last = len(migrations) if to is None else to
        if not 0 < last <= len(migrations):
            raise MigrationError(f"there is no migration {last}")

        async with self._locked() as connection:
            statuses = await read_status(connection, migrations)
            refuse(statuses, "edited", "skipped")
            pending = {status.version for status in statuses if status.state == "pending"}
            chosen = [each for each in migrations[:last] if each.version in pending]
            for migration in chosen:
                await self._run(connection, _step_up(migration))
                self._say(f"{migration.file_name} applied")
        return [migration.version for migration in chosen]

    async def down(self, steps: int = 1) -> list[int]:
        """Undo the newest `steps` applied versions, or all if there are fewer; return them."""
        if steps < 1:
            raise MigrationError(f"{steps} steps down: at least one")
        migrations = read_migrations(self._directory)
        by_version = {migration.version: migration for migration in migrations}

        async with self._locked() as connection:
            statuses = await read_status(connection, migrations)
            refuse(statuses, "edited", "skipped", "unknown")
            applied = [status.version for status in statuses if status.state == "applied"]
            chosen = applied[::-1][:steps]
            for version in chosen:
                await self._run(connection, _step_down(by_version[version]))
                self._say(f"{by_version[version].file_name} undone")
        return chosen

    async def status(self) -> list[MigrationStatus]:
        """Every version of the files and of the database, in order; changes nothing."""
        migrations = read_migrations(self._directory)
        async with self._connected() as connection:
            return await read_status(connection, migrations)

    async def verify(self) -> None:
        """Raise SchemaMismatchError unless exactly these files are applied, as they are now."""
        refuse(await self.status(), "pending", "skipped", "edited", "unknown")

    @asynccontextmanager
    async def _locked(self) -> AsyncGenerator[Connection]:
        async with (
            self._connected() as connection,
            lock_held(connection, wait_seconds=self._advisory_wait_seconds, say=self._say),
        ):
            await connection.execute(_CREATE_TABLE)
            yield connection

    def _connected(self) -> AbstractAsyncContextManager[Connection]:
        return connected(
            self._connection_url,
            connect_timeout_seconds=self._connect_timeout_seconds,
            command_timeout_seconds=self._statement_timeout_milliseconds / 1000 + GRACE_SECONDS,
            server_settings=self._server_settings,
        )

    async def _run(self, connection: Connection, step: _Step) -> None:
        run = self._run_in_transaction if step.section.transactional else self._run_alone
        try:
            await run(connection, step)
            await connection.execute("RESET ALL")  # What the file set is not for the next one.
        except VENDOR_ERRORS as error:
            raise MigrationDatabaseError(f"{step.file_name}: {reason(error)}") from error

    async def _run_in_transaction(self, connection: Connection, step: _Step) -> None:
        async with transaction(connection):
            await self._limit(connection, step.section, for_transaction=True)
            # First the record: afterwards the file may have changed the search path.
            await connection.execute(step.record, *step.record_arguments)
            for statement in step.section.statements:
                await self._execute(connection, step, statement)

    async def _run_alone(self, connection: Connection, step: _Step) -> None:
        await self._limit(connection, step.section, for_transaction=False)
        await self._drop_invalid(connection, step)  # A killed runner could not tidy up.
        try:
            await self._execute(connection, step, step.section.statements[0])
        except MigrationStatementError as error:
            if error.sqlstate:  # Else the server is silent: the next run drops what is left.
                with suppress(*VENDOR_ERRORS):
                    await self._drop_invalid(connection, step)
            raise
        if dropped := await self._drop_invalid(connection, step):
            raise MigrationDatabaseError(f"{step.file_name}: {dropped} was invalid and is dropped")
        await connection.execute("RESET ALL")
        await connection.execute(step.record, *step.record_arguments)

    async def _limit(
        self, connection: Connection, section: Section, *, for_transaction: bool
    ) -> None:
        lock = section.lock_timeout_milliseconds or self._lock_timeout_milliseconds
        statement = self._statement_limit(section)
        await connection.execute(_SET_LIMITS, str(lock), str(statement), for_transaction)

    async def _execute(self, connection: Connection, step: _Step, statement: Statement) -> None:
        # The server keeps the limit; the client's own is for a server that is no longer there.
        seconds = self._statement_limit(step.section) / 1000 + GRACE_SECONDS
        try:
            await connection.execute(statement.text, timeout=seconds)
        except VENDOR_ERRORS as error:
            line = statement.line + _lines_into(statement.text, error)
            raise MigrationStatementError(step.file_name, line, error) from error

    def _statement_limit(self, section: Section) -> int:
        return section.statement_timeout_milliseconds or self._statement_timeout_milliseconds

    async def _drop_invalid(self, connection: Connection, step: _Step) -> str | None:
        for index in step.section.indexes:
            if name := await connection.fetchval(_SELECT_INVALID_INDEX, index):
                await connection.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
                self._say(f"{step.file_name}: {name} was left invalid by a failed run, dropped")
                return name
        return None


def _step_up(migration: Migration) -> _Step:
    return _Step(
        file_name=migration.file_name,
        section=migration.up,
        record=_INSERT,
        record_arguments=(migration.version, migration.name, migration.checksum),
    )


def _step_down(migration: Migration) -> _Step:
    return _Step(
        file_name=migration.file_name,
        section=migration.down,
        record=_DELETE,
        record_arguments=(migration.version,),
    )


def _lines_into(text: str, error: Exception) -> int:
    position = getattr(error, "position", None)
    return text.count("\n", 0, int(position) - 1) if position else 0


def _milliseconds(seconds: float) -> int:
    # PostgreSQL reads 0 as no limit at all.
    return max(1, round(seconds * 1000))
