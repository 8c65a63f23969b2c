"""Reading of migration files: dbmate's format, checked before a database is asked.

A file `0001_name.sql` holds `-- migrate:up` and then `-- migrate:down`, each optionally followed by
`transaction:false`. A line `-- migrate:timeout lock=5s statement=600s` (ms, s, min, h) changes the
time limits: of its section, or of both where it stands above them.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_FILE_NAME: Final = re.compile(r"(?P<version>\d{4})_(?P<name>[a-z0-9_]+)\.sql")
_DIRECTIVE: Final = re.compile(
    r"^[ \t]*--[ \t]*migrate:(?P<word>\w*)(?P<options>.*)$", re.MULTILINE
)
_TIMEOUT: Final = re.compile(r"(?P<kind>lock|statement)=(?P<amount>[1-9]\d*)(?P<unit>ms|s|min|h)")
_MILLISECONDS: Final = {"ms": 1, "s": 1_000, "min": 60_000, "h": 3_600_000}

_IDENTIFIER: Final = r'(?:"(?:[^"]|"")+"|[^\W\d][\w$]*)'
_TRANSACTION_CONTROL: Final = re.compile(
    r"(BEGIN|START|COMMIT|END|ROLLBACK|ABORT|PREPARE TRANSACTION)\b", re.IGNORECASE
)
_INDEX_BUILD: Final = re.compile(r"CREATE (?:UNIQUE )?INDEX CONCURRENTLY\b", re.IGNORECASE)
_INDEX_NAME: Final = re.compile(
    rf" (?:IF NOT EXISTS )?(?P<index>{_IDENTIFIER}) ON (?:ONLY )?"
    rf"(?:(?P<schema>{_IDENTIFIER}) \. )?{_IDENTIFIER}",
    re.IGNORECASE,
)
_COMMENT_EDGE: Final = re.compile(r"/\*|\*/")
_TOKEN: Final = re.compile(
    r"""
      (?P<blank> \s+ | --[^\n]* )
    | (?P<comment> /\* )
    | (?P<quoted> e'(?:[^'\\]|\\.|'')*' | '(?:[^']|'')*' | "(?:[^"]|"")*"
                | \$(?P<tag>(?:[^\W\d]\w*)?)\$ .*? \$(?P=tag)\$ )
    | (?P<unterminated> ['"] | \$(?:[^\W\d]\w*)?\$ )
    | (?P<word> \w[\w$]* )
    | (?P<sign> . )
    """,
    re.VERBOSE | re.DOTALL | re.IGNORECASE,
)


class MigrationError(Exception):
    """Whatever keeps a migration from its end; its text is fit to be shown, without any secret."""


class MigrationFileError(MigrationError):
    """A file, or the set of files, cannot be used as it stands; the database was not asked."""


class Statement(msgspec.Struct, frozen=True, kw_only=True):
    """One statement as written; `plain` has one blank between tokens and no comments.

    `line` is where it begins in its file: comments before it do not belong to it.
    """

    text: str
    plain: str
    line: int


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """What one direction runs; `indexes` are those that it builds concurrently."""

    statements: tuple[Statement, ...]
    transactional: bool
    lock_timeout_milliseconds: int | None
    statement_timeout_milliseconds: int | None
    indexes: tuple[str, ...]


class Migration(msgspec.Struct, frozen=True, kw_only=True):
    version: int
    name: str
    file_name: str
    checksum: str
    up: Section
    down: Section


def read_migrations(directory: Path) -> tuple[Migration, ...]:
    """All migrations of a folder, numbered 1, 2, 3 ... without gaps; else MigrationFileError."""
    try:
        texts = {path.name: path.read_text("utf-8") for path in sorted(directory.glob("*.sql"))}
    except (OSError, UnicodeDecodeError) as error:
        raise MigrationFileError(f"the migrations cannot be read: {error}") from error

    migrations = tuple(parse_migration(name, text) for name, text in texts.items())
    if not migrations:
        raise MigrationFileError(f"no migrations in {directory}")

    for number, migration in enumerate(migrations, start=1):
        _check_number(number, migration)
    return migrations


def parse_migration(file_name: str, text: str) -> Migration:
    label = _FILE_NAME.fullmatch(file_name)
    if label is None:
        raise MigrationFileError(f"{file_name}: the name must look like 0001_what_it_does.sql")

    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    headers = [found for found in _DIRECTIVE.finditer(text) if found["word"] in {"up", "down"}]
    if [header["word"] for header in headers] != ["up", "down"]:
        raise MigrationFileError(
            f"{file_name}: needs one `-- migrate:up` section and after it one `-- migrate:down`"
        )

    up, down = headers
    reader = _Reader(file_name, text)
    reader.check_preamble(up.start())
    return Migration(
        version=int(label["version"]),
        name=label["name"],
        file_name=file_name,
        checksum=_checksum(text[up.end() : down.start()]),
        up=reader.section(up, down.start(), preamble_end=up.start()),
        down=reader.section(down, len(text), preamble_end=up.start()),
    )


def _check_number(number: int, migration: Migration) -> None:
    if migration.version < number:
        raise MigrationFileError(
            f"{migration.file_name}: number {migration.version} is taken or zero;"
            " migrations count from 0001, each number once"
        )
    if migration.version > number:
        raise MigrationFileError(f"{migration.file_name}: number {number:04d} is missing before it")


def _checksum(section: str) -> str:
    """SHA-256 of what the section does: blank ends of lines and time limits may still change."""
    lines = (line.rstrip() for line in section.splitlines())
    kept = [line for line in lines if _DIRECTIVE.match(line) is None]
    return hashlib.sha256("\n".join(kept).strip().encode()).hexdigest()


class _Reader:
    """One file; positions are offsets into its text, so that every fault has its line."""

    def __init__(self, file_name: str, text: str) -> None:
        self._file_name = file_name
        self._text = text

    def check_preamble(self, end: int) -> None:
        for statement in self._statements(0, end):
            raise self._fault(statement.line, "SQL stands before `-- migrate:up`")

    def section(self, header: re.Match[str], end: int, *, preamble_end: int) -> Section:
        start = header.end()
        transactional = self._transactional(header)
        statements = tuple(self._statements(start, end))
        self._check(statements, self._line(header.start()), transactional=transactional)
        limits = self._timeouts(0, preamble_end) | self._timeouts(start, end)
        return Section(
            statements=statements,
            transactional=transactional,
            lock_timeout_milliseconds=limits.get("lock"),
            statement_timeout_milliseconds=limits.get("statement"),
            indexes=() if transactional else tuple(self._indexes(statements[0])),
        )

    def _transactional(self, header: re.Match[str]) -> bool:
        match header["options"].split():
            case [] | ["transaction:true"]:
                return True
            case ["transaction:false"]:
                return False
            case _:
                raise self._fault(self._line(header.start()), "the option is transaction:false")

    def _check(self, statements: tuple[Statement, ...], line: int, *, transactional: bool) -> None:
        if not statements:
            raise self._fault(line, "the section holds no statement")

        if len(statements) > 1 and not transactional:
            raise self._fault(
                statements[1].line, "a transaction:false section holds exactly one statement"
            )

        for statement in statements:
            if control := _TRANSACTION_CONTROL.match(statement.plain):
                word = control[1].upper()
                raise self._fault(statement.line, f"{word}: the runner opens and ends transactions")

    def _timeouts(self, start: int, end: int) -> dict[str, int]:
        limits: dict[str, int] = {}
        for directive in _DIRECTIVE.finditer(self._text, start, end):
            line, options = self._line(directive.start()), directive["options"].split()
            if directive["word"] != "timeout" or not options:
                raise self._fault(line, "unknown directive; there are up, down, timeout")

            for option in options:
                parts = _TIMEOUT.fullmatch(option)
                if parts is None:
                    raise self._fault(line, f"{option}: a time limit reads lock=5s or statement=1h")
                limits[parts["kind"]] = int(parts["amount"]) * _MILLISECONDS[parts["unit"]]
        return limits

    def _indexes(self, statement: Statement) -> Iterator[str]:
        build = _INDEX_BUILD.match(statement.plain)
        if build is None:
            return

        name = _INDEX_NAME.match(statement.plain, build.end())
        if name is None:
            raise self._fault(
                statement.line, "an index that is built concurrently needs a name, to be checked by"
            )
        # An index lives in the schema of its table and is never written with one.
        yield f"{name['schema']}.{name['index']}" if name["schema"] else name["index"]

    def _statements(self, start: int, end: int) -> Iterator[Statement]:
        """Cut at semicolons as psql does: not in quotes, comments, or BEGIN ATOMIC ... END."""
        tokens: list[re.Match[str]] = []
        depth = 0
        for token in self._tokens(start, end):
            word = token[0].lower()
            if word == ";" and depth == 0:
                if tokens:
                    yield self._statement(tokens)
                tokens = []
                continue
            depth = _depth(depth, tokens[-1][0].lower() if tokens else "", word)
            tokens.append(token)
        if tokens:
            yield self._statement(tokens)

    def _statement(self, tokens: list[re.Match[str]]) -> Statement:
        return Statement(
            text=self._text[tokens[0].start() : tokens[-1].end()],
            plain=" ".join(token[0] for token in tokens),
            line=self._line(tokens[0].start()),
        )

    def _tokens(self, start: int, end: int) -> Iterator[re.Match[str]]:
        while start < end and (token := _TOKEN.match(self._text, start, end)):
            start = token.end()
            match token.lastgroup:
                case "blank":
                    continue
                case "comment":
                    start = self._comment_end(token.start(), end)
                case "unterminated":
                    raise self._fault(self._line(token.start()), f"{token[0]} is never closed")
                case _:
                    yield token

    def _comment_end(self, start: int, end: int) -> int:
        depth = 0
        for edge in _COMMENT_EDGE.finditer(self._text, start, end):
            depth += 1 if edge[0] == "/*" else -1
            if depth == 0:
                return edge.end()
        raise self._fault(self._line(start), "/* is never closed")

    def _line(self, position: int) -> int:
        return self._text.count("\n", 0, position) + 1

    def _fault(self, line: int, reason: str) -> MigrationFileError:
        return MigrationFileError(f"{self._file_name} line {line}: {reason}")


def _depth(depth: int, previous: str, word: str) -> int:
    if word == "atomic" and previous == "begin":
        return 1
    if depth and word in {"case", "end"}:
        return depth + (1 if word == "case" else -1)
    return depth
