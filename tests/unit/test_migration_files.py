from textwrap import dedent

import pytest

from service.adapters.postgres.migration_files import (
    MigrationFileError,
    parse_migration,
    read_migrations,
)

DOWN = "-- migrate:down\nDROP TABLE a;\n"
PLAIN = f"-- migrate:up\nCREATE TABLE a (id int);\n{DOWN}"


def up(body, *, options=""):
    return f"-- migrate:up{options}\n{body}\n{DOWN}"


def parse_up(body, *, options=""):
    return parse_migration("0001_a.sql", up(body, options=options)).up


def refusal(text, name="0001_a.sql"):
    with pytest.raises(MigrationFileError) as caught:
        parse_migration(name, text)
    return str(caught.value)


def write(folder, **files):
    for name, text in files.items():
        (folder / f"{name.removeprefix('m')}.sql").write_text(text)
    return folder


def test_a_file_is_read_into_its_two_directions():
    text = """\
        -- Why this table is there.
        -- migrate:up
        CREATE TABLE a (id int);

        /* both */
        CREATE TABLE b (id int);
        -- migrate:down transaction:false
        DROP TABLE a, b
        """
    migration = parse_migration("0001_first_tables.sql", dedent(text))

    assert (migration.version, migration.name) == (1, "first_tables")
    assert [(each.text, each.line) for each in migration.up.statements] == [
        ("CREATE TABLE a (id int)", 3),
        ("CREATE TABLE b (id int)", 6),
    ]
    assert migration.up.transactional
    assert [each.text for each in migration.down.statements] == ["DROP TABLE a, b"]
    assert not migration.down.transactional


def test_windows_line_ends_and_a_byte_order_mark_make_no_difference():
    windows = "\ufeff" + PLAIN.replace("\n", "\r\n")
    assert parse_migration("0001_a.sql", windows) == parse_migration("0001_a.sql", PLAIN)


@pytest.mark.parametrize(
    "body",
    [
        "SELECT 'a;b', 'it''s;', E'\\';', U&'\\;'",
        'SELECT 1 AS "a;""b"',
        "DO $$ BEGIN PERFORM 1; PERFORM 2; END $$",
        "DO $body$ BEGIN EXECUTE $$SELECT 1;$$; END $body$",
        "SELECT 1 -- one; two",
        "SELECT 1 /* one; /* two; */ three; */ + 1",
        "SELECT a$b$c FROM t",
        "/* before; */ SELECT 1; -- after;",
        ";; SELECT 1;;",
        "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT CASE WHEN true THEN 1 END; END;",
    ],
)
def test_a_semicolon_inside_of_something_does_not_end_a_statement(body):
    assert len(parse_up(body, options=" transaction:false").statements) == 1


@pytest.mark.parametrize(
    "body",
    [
        "SELECT 1; SELECT 2",
        "SELECT 'a''b'; SELECT 2",
        "SELECT 'a\\'; SELECT 2",
        "SELECT e; SELECT 'b'",
        "SELECT a$b$; SELECT c$b$",
        "SELECT $1; SELECT $2",
        "DO $$ BEGIN END $$; /* ; */ SELECT 1",
        "SELECT CASE WHEN true THEN 1 END; SELECT 2",
        "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; END; SELECT 2",
    ],
)
def test_two_statements_are_counted_as_two_and_refused_outside_of_a_transaction(body):
    assert len(parse_up(body).statements) == 2
    assert refusal(up(body, options=" transaction:false")) == (
        "0001_a.sql line 2: a transaction:false section holds exactly one statement"
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "CREATE TABLE a (id int);",
        "-- migrate:up\nSELECT 1;",
        "-- migrate:down\nSELECT 1;",
        f"{DOWN}-- migrate:up\nSELECT 1;",
        PLAIN + DOWN,
        PLAIN + PLAIN,
    ],
)
def test_a_file_needs_its_two_sections_once_and_in_order(text):
    assert "needs one `-- migrate:up` section and after it one `-- migrate:down`" in refusal(text)


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        (up("-- nothing"), 1, "the section holds no statement"),
        ("-- migrate:up\nSELECT 1;\n\n-- migrate:down\n ; \n", 4, "holds no statement"),
        (f"SELECT 1;\n{PLAIN}", 1, "SQL stands before `-- migrate:up`"),
        (up("SELECT 1", options=" transaction:no"), 1, "the option is transaction:false"),
        (up("-- migrate:timeuot lock=5s\nSELECT 1"), 2, "unknown directive"),
        (up("-- migrate:timeout\nSELECT 1"), 2, "unknown directive"),
        (up("-- migrate:timeout lock=5\nSELECT 1"), 2, "lock=5: a time limit reads"),
        (up("-- migrate:timeout lock=0s\nSELECT 1"), 2, "lock=0s: a time limit reads"),
        (up("-- migrate:timeout idle=5s\nSELECT 1"), 2, "idle=5s: a time limit reads"),
        (up("SELECT 1;\nSELECT 'a"), 3, "' is never closed"),
        (up('SELECT "a'), 2, '" is never closed'),
        (up("DO $x$ BEGIN END $y$"), 2, "$x$ is never closed"),
        (up("/* /* */ SELECT 1"), 2, "/* is never closed"),
        (up("SELECT 1;\ncommit;"), 3, "COMMIT: the runner opens and ends transactions"),
        (up("BEGIN;\nSELECT 1; END"), 2, "BEGIN: the runner opens"),
        (up("PREPARE /**/ TRANSACTION 'a'"), 2, "PREPARE TRANSACTION: the runner opens"),
    ],
)
def test_a_fault_is_named_with_its_file_and_line(text, line, reason):
    message = refusal(text)
    assert message.startswith(f"0001_a.sql line {line}: ")
    assert reason in message


@pytest.mark.parametrize("name", ["1_a.sql", "0001-a.sql", "0001_A.sql", "0001_.sql", "a.sql"])
def test_a_file_name_that_is_no_migration_is_refused(name):
    assert refusal(PLAIN, name) == f"{name}: the name must look like 0001_what_it_does.sql"


def test_time_limits_hold_for_their_section_and_above_both_for_both():
    text = (
        "-- migrate:timeout lock=1min statement=2h\n"
        "-- migrate:up\n-- migrate:timeout lock=250ms\nSELECT 1;\n"
        "-- migrate:down\n-- migrate:timeout statement=600s\nSELECT 1;\n"
    )
    migration = parse_migration("0001_a.sql", text)

    assert migration.up.lock_timeout_milliseconds == 250
    assert migration.up.statement_timeout_milliseconds == 7_200_000
    assert migration.down.lock_timeout_milliseconds == 60_000
    assert migration.down.statement_timeout_milliseconds == 600_000


@pytest.mark.parametrize(
    ("statement", "index"),
    [
        ("CREATE INDEX CONCURRENTLY i ON t (a)", "i"),
        ("create unique index concurrently if not exists i on only t (a)", "i"),
        ('CREATE /* why */ INDEX\nCONCURRENTLY "I x" ON s.t USING gin (a)', 's."I x"'.lower()),
    ],
)
def test_the_index_that_is_built_concurrently_is_known_by_name(statement, index):
    indexes = parse_up(statement, options=" transaction:false").indexes
    assert [each.lower() for each in indexes] == [index]


def test_only_a_concurrent_build_outside_of_a_transaction_is_looked_after():
    assert parse_up("CREATE INDEX i ON t (a)").indexes == ()
    assert parse_up("DROP INDEX CONCURRENTLY i", options=" transaction:false").indexes == ()
    assert parse_up("VACUUM t", options=" transaction:false").indexes == ()


def test_a_concurrent_build_without_a_name_is_refused():
    text = up("CREATE INDEX CONCURRENTLY ON t (a)", options=" transaction:false")
    assert "line 2: an index that is built concurrently needs a name" in refusal(text)


def test_the_checksum_follows_what_up_does_and_nothing_else():
    def checksum(text):
        return parse_migration("0001_a.sql", text).checksum

    original = checksum(up("CREATE TABLE a (id int);"))
    assert checksum(up("\n-- migrate:timeout lock=9s\nCREATE TABLE a (id int);  \n\n")) == original
    assert checksum(up("CREATE TABLE a (id int);").replace("DROP", "DROP  ")) == original
    assert checksum(up("CREATE TABLE a (id bigint);")) != original
    assert checksum(up("CREATE TABLE a (id int); -- why")) != original


def test_migrations_are_read_in_order_and_other_files_left_alone(tmp_path):
    write(tmp_path, m0002_b=PLAIN, m0001_a=PLAIN)
    (tmp_path / "README.md").write_text("About migrations.")

    assert [each.file_name for each in read_migrations(tmp_path)] == ["0001_a.sql", "0002_b.sql"]


def test_a_gap_is_refused(tmp_path):
    write(tmp_path, m0001_a=PLAIN, m0003_c=PLAIN)
    with pytest.raises(MigrationFileError, match=r"0003_c\.sql: number 0002 is missing before it"):
        read_migrations(tmp_path)


def test_a_number_that_two_files_have_is_refused(tmp_path):
    write(tmp_path, m0001_a=PLAIN, m0001_b=PLAIN)
    with pytest.raises(MigrationFileError, match=r"0001_b\.sql: number 1 is taken"):
        read_migrations(tmp_path)


def test_numbers_count_from_one(tmp_path):
    write(tmp_path, m0000_a=PLAIN)
    with pytest.raises(MigrationFileError, match=r"0000_a\.sql: number 0 is taken or zero"):
        read_migrations(tmp_path)


def test_an_empty_or_missing_folder_is_an_error_and_not_an_up_to_date_schema(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(MigrationFileError, match="no migrations in"):
            read_migrations(folder)


def test_a_file_that_is_not_utf_8_is_refused(tmp_path):
    (tmp_path / "0001_a.sql").write_bytes(b"-- \xff\n" + PLAIN.encode())
    with pytest.raises(MigrationFileError, match="cannot be read"):
        read_migrations(tmp_path)
