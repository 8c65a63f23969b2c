"""What the database has of the migrations, and what is wrong with that."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Final, Literal, LiteralString

import asyncpg
import msgspec

from service.adapters.postgres.migration_files import Migration, MigrationError, read_migrations

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from asyncpg.pool import PoolConnectionProxy

    Connection = asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]

_SELECT_APPLIED: Final[LiteralString] = """
SELECT version, name, checksum, applied_at FROM schema_migrations ORDER BY version
"""
_SELECT_MISSING: Final[LiteralString] = """
SELECT expected FROM unnest($1::int[]) AS expected
WHERE NOT EXISTS (SELECT FROM schema_migrations WHERE version = expected)
ORDER BY expected
"""

MigrationState = Literal["applied", "pending", "skipped", "edited", "unknown"]


class SchemaMismatchError(MigrationError):
    """The database is not what the files describe; `problems` has a sentence for each fault."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(self.problems))


class MigrationStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One version; a `skipped` one has later ones applied, an `unknown` one has no file."""

    version: int
    name: str
    state: MigrationState
    applied_at: datetime | None

    @property
    def problem(self) -> str | None:
        label = f"{self.version:04d}_{self.name}"
        match self.state:
            case "applied":
                return None
            case "pending":
                return f"{label} is pending: run `migrate up`"
            case "skipped":
                return f"{label} was never applied although later ones were"
            case "edited":
                return f"{label} was edited after it was applied: restore it, change by a new file"
            case "unknown":
                return f"{label} is applied but has no file: deleted, or from a newer release"


async def schema_problem(
    connection: Connection,
    expected: Iterable[int],
    *,
    timeout_seconds: float = 2.0,
) -> str | None:
    """Why a server that expects these versions is not ready, in one query; None if it may serve.

    Versions beyond the expected ones are no problem: a newer release migrates before it replaces
    this one. What is no answer about the schema (connection, time) is raised as asyncpg raises it.
    """
    try:
        missing = await connection.fetch(_SELECT_MISSING, list(expected), timeout=timeout_seconds)
    except (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError):
        return "the database was never migrated: run `migrate up`"
    except asyncpg.InsufficientPrivilegeError:
        return "the role of the service may not read schema_migrations: grant it SELECT"

    if not missing:
        return None
    versions = ", ".join(f"{row['expected']:04d}" for row in missing)
    return f"the database is behind, {versions} not applied: run `migrate up`"


def expected_versions(directory: Path) -> tuple[int, ...]:
    return tuple(migration.version for migration in read_migrations(directory))


async def read_status(
    connection: Connection, migrations: Iterable[Migration]
) -> list[MigrationStatus]:
    """Every version of the files and of the database, in order."""
    try:
        rows = await connection.fetch(_SELECT_APPLIED)
    except asyncpg.UndefinedTableError:
        rows = []
    applied = {row["version"]: row for row in rows}
    files = {migration.version: migration for migration in migrations}
    newest = max(applied, default=0)
    return [
        _status(version, files.get(version), applied.get(version), newest)
        for version in sorted(files.keys() | applied.keys())
    ]


def refuse(statuses: Iterable[MigrationStatus], *states: MigrationState) -> None:
    """Raise SchemaMismatchError if any version is in one of these states."""
    problems = [each.problem for each in statuses if each.state in states and each.problem]
    if problems:
        raise SchemaMismatchError(problems)


def _status(
    version: int, migration: Migration | None, row: asyncpg.Record | None, newest: int
) -> MigrationStatus:
    state: MigrationState = "applied"
    if migration is None:
        state = "unknown"
    elif row is None:
        state = "skipped" if version < newest else "pending"
    elif row["checksum"] != migration.checksum:
        state = "edited"
    return MigrationStatus(
        version=version,
        name=migration.name if migration else row["name"] if row else "",
        state=state,
        applied_at=row["applied_at"] if row else None,
    )
