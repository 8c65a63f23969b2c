import asyncio
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from service.adapters.postgres.migrations import (
    MigrationDatabaseError,
    MigrationError,
    MigrationLockError,
    MigrationStatementError,
    Migrator,
    SchemaMismatchError,
    expected_versions,
    schema_problem,
)

A = "-- migrate:up\nCREATE TABLE a (id int);\n-- migrate:down\nDROP TABLE a;\n"
B = "-- migrate:up\nCREATE TABLE b (id int);\n-- migrate:down\nDROP TABLE b;\n"
SLOW = A.replace("(id int)", "AS SELECT 1 AS id FROM pg_sleep(1)")
INDEX = (
    "-- migrate:up transaction:false\n"
    "CREATE UNIQUE INDEX CONCURRENTLY a_id ON a (id);\n"
    "-- migrate:down transaction:false\n"
    "DROP INDEX CONCURRENTLY a_id;\n"
)


def write(folder, *texts):
    for old in folder.glob("*.sql"):
        old.unlink()
    for number, text in enumerate(texts, start=1):
        (folder / f"{number:04d}_step.sql").write_text(text)
    return folder


@asynccontextmanager
async def connection_to(url):
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def relations(url):
    query = "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
    async with connection_to(url) as connection:
        names = {row["relname"] for row in await connection.fetch(query)}
    return {name for name in names if not name.startswith("schema_migrations")}


async def recorded(url):
    async with connection_to(url) as connection:
        rows = await connection.fetch("SELECT version FROM schema_migrations ORDER BY version")
    return [row["version"] for row in rows]


async def execute(url, sql):
    async with connection_to(url) as connection:
        await connection.execute(sql)


async def until_running(connection, pattern):
    query = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE query LIKE $1 AND state = 'active'"
        " AND datname = current_database() AND pid <> pg_backend_pid()"
    )
    for _ in range(500):
        if await connection.fetchval(query, pattern):
            return
        await asyncio.sleep(0.02)
    pytest.fail(f"nobody runs {pattern}")


async def test_up_down_and_up_again_is_a_round_trip(empty_database_url, tmp_path):
    said = []
    migrator = Migrator(empty_database_url, write(tmp_path, A, INDEX, B), say=said.append)

    assert await migrator.up() == [1, 2, 3]
    assert await relations(empty_database_url) == {"a", "a_id", "b"}
    await migrator.verify()

    assert await migrator.down() == [3]
    assert await migrator.down(steps=9) == [2, 1]
    assert await relations(empty_database_url) == set()
    assert await recorded(empty_database_url) == []

    assert await migrator.up() == [1, 2, 3]
    assert await migrator.up() == []
    assert said[:4] == [
        "0001_step.sql applied",
        "0002_step.sql applied",
        "0003_step.sql applied",
        "0003_step.sql undone",
    ]


async def test_up_stops_at_the_version_that_was_asked_for(empty_database_url, tmp_path):
    migrator = Migrator(empty_database_url, write(tmp_path, A, INDEX, B))
    assert await migrator.up(to=1) == [1]
    assert await migrator.up(to=1) == []
    assert await migrator.up(to=3) == [2, 3]

    for beyond in (0, 4):
        with pytest.raises(MigrationError, match=f"there is no migration {beyond}"):
            await migrator.up(to=beyond)
    with pytest.raises(MigrationError, match="0 steps down: at least one"):
        await migrator.down(steps=0)


async def test_status_tells_each_version_and_changes_nothing(empty_database_url, tmp_path):
    migrator = Migrator(empty_database_url, write(tmp_path, A, B))
    assert [each.state for each in await migrator.status()] == ["pending", "pending"]
    async with connection_to(empty_database_url) as connection:
        assert await connection.fetchval("SELECT to_regclass('schema_migrations')") is None

    await migrator.up(to=1)
    first, second = await migrator.status()
    assert (first.version, first.name, first.state) == (1, "step", "applied")
    assert first.applied_at is not None
    assert (second.state, second.applied_at) == ("pending", None)


async def test_verify_names_what_is_pending(empty_database_url, tmp_path):
    migrator = Migrator(empty_database_url, write(tmp_path, A, B))
    with pytest.raises(SchemaMismatchError) as caught:
        await migrator.verify()
    assert caught.value.problems == (
        "0001_step is pending: run `migrate up`",
        "0002_step is pending: run `migrate up`",
    )


async def test_an_edited_file_stops_verify_up_and_down(empty_database_url, tmp_path):
    migrator = Migrator(empty_database_url, write(tmp_path, A))
    await migrator.up()
    write(tmp_path, A.replace("int", "bigint"), B)

    reason = "0001_step was edited after it was applied: restore it, change by a new file"
    for action in (migrator.verify, migrator.up, migrator.down):
        with pytest.raises(SchemaMismatchError, match=reason):
            await action()
    assert await relations(empty_database_url) == {"a"}


async def test_a_version_without_its_file_is_named_and_never_undone(empty_database_url, tmp_path):
    migrator = Migrator(empty_database_url, write(tmp_path, A, B))
    await migrator.up()
    write(tmp_path, A)

    reason = "0002_step is applied but has no file: deleted, or from a newer release"
    for action in (migrator.verify, migrator.down):
        with pytest.raises(SchemaMismatchError, match=reason):
            await action()
    assert await migrator.up() == [], "an older release may be rolled out again"


async def test_a_hole_in_what_was_applied_is_refused(empty_database_url, tmp_path):
    migrator = Migrator(empty_database_url, write(tmp_path, A, B))
    await migrator.up()
    await execute(empty_database_url, "DELETE FROM schema_migrations WHERE version = 1")

    reason = "0001_step was never applied although later ones were"
    for action in (migrator.verify, migrator.up, migrator.down):
        with pytest.raises(SchemaMismatchError, match=reason):
            await action()


async def test_of_two_runners_one_applies_and_the_other_finds_nothing(empty_database_url, tmp_path):
    write(tmp_path, SLOW, INDEX)
    said = []
    runners = [Migrator(empty_database_url, tmp_path, say=said.append) for _ in range(2)]

    applied = await asyncio.gather(*(runner.up() for runner in runners))

    assert sorted(applied) == [[], [1, 2]]
    assert said.count("another runner is at work: waiting for it") == 1


async def test_the_wait_for_another_runner_ends_with_an_error(empty_database_url, tmp_path):
    write(tmp_path, SLOW)
    first = asyncio.ensure_future(Migrator(empty_database_url, tmp_path).up())
    async with connection_to(empty_database_url) as connection:
        await until_running(connection, "CREATE TABLE a%")

    second = Migrator(empty_database_url, tmp_path, advisory_wait_seconds=0.1)
    with pytest.raises(MigrationLockError, match=r"another runner is still at work after 0\.1 s"):
        await second.up()
    assert await first == [1]


async def test_a_failing_migration_leaves_nothing_and_names_its_line(empty_database_url, tmp_path):
    broken = (
        "-- migrate:up\nCREATE TABLE b (id int);\nSET search_path = '';\n"
        "SELECT 1,\n       nothing;\n-- migrate:down\nDROP TABLE b;\n"
    )
    migrator = Migrator(empty_database_url, write(tmp_path, A, broken, B))

    with pytest.raises(MigrationStatementError) as caught:
        await migrator.up()

    assert str(caught.value) == '0002_step.sql line 5: column "nothing" does not exist (42703)'
    assert (caught.value.file_name, caught.value.line) == ("0002_step.sql", 5)
    assert isinstance(caught.value.__cause__, asyncpg.UndefinedColumnError)
    assert await relations(empty_database_url) == {"a"}
    assert await recorded(empty_database_url) == [1]

    write(tmp_path, A, B)
    assert await migrator.up() == [2]


async def test_a_failure_without_a_position_is_named_by_its_statement(empty_database_url, tmp_path):
    broken = A.replace(
        "CREATE TABLE a (id int);",
        "CREATE TABLE a (id int PRIMARY KEY);\n\n-- Doubled.\nINSERT INTO a\nVALUES (77), (77);",
    )
    with pytest.raises(MigrationStatementError) as caught:
        await Migrator(empty_database_url, write(tmp_path, broken)).up()

    assert str(caught.value).startswith("0001_step.sql line 5: duplicate key")
    assert "77" not in str(caught.value), "rows stay out of messages"


async def test_a_commit_that_is_refused_leaves_nothing_and_names_its_file(
    empty_database_url, tmp_path
):
    deferred = A.replace(
        "(id int);",
        "(id int PRIMARY KEY, b int REFERENCES a INITIALLY DEFERRED); INSERT INTO a VALUES (1, 2);",
    )
    with pytest.raises(MigrationDatabaseError, match=r"^0001_step\.sql: .*foreign key"):
        await Migrator(empty_database_url, write(tmp_path, deferred)).up()
    assert await relations(empty_database_url) == set()


async def test_a_failing_down_keeps_the_record(empty_database_url, tmp_path):
    migrator = Migrator(empty_database_url, write(tmp_path, A.replace("DROP TABLE a", "DROP x")))
    await migrator.up()
    with pytest.raises(MigrationStatementError, match=r"^0001_step\.sql line 4: syntax error"):
        await migrator.down()
    assert await recorded(empty_database_url) == [1]


async def test_what_a_file_sets_does_not_reach_the_next_but_server_settings_do(
    empty_database_url, tmp_path
):
    leaking = A.replace("CREATE", "SET search_path = pg_catalog; SET app.mode = 'x'; CREATE")
    leaking = leaking.replace("TABLE a", "TABLE public.a")
    observing = B.replace(
        "(id int)",
        "AS SELECT current_setting('app.mode') AS mode, current_schema() AS place,"
        " current_setting('statement_timeout') AS statement,"
        " current_setting('lock_timeout') AS lock",
    ).replace("-- migrate:up\n", "-- migrate:up\n-- migrate:timeout lock=7s\n")
    migrator = Migrator(
        empty_database_url,
        write(tmp_path, leaking, observing),
        statement_timeout_seconds=90,
        server_settings={"app.mode": "all"},
    )
    await migrator.up()

    async with connection_to(empty_database_url) as connection:
        row = await connection.fetchrow("SELECT * FROM b")
    assert row is not None
    assert dict(row) == {"mode": "all", "place": "public", "statement": "90s", "lock": "7s"}


async def test_an_index_that_could_not_be_built_is_dropped_so_that_a_rerun_works(
    empty_database_url, tmp_path
):
    said = []
    migrator = Migrator(empty_database_url, write(tmp_path, A, INDEX), say=said.append)
    await migrator.up(to=1)
    await execute(empty_database_url, "INSERT INTO a VALUES (1), (1)")

    with pytest.raises(MigrationStatementError, match=r"^0002_step\.sql line 2: could not create"):
        await migrator.up()
    assert said[-1] == "0002_step.sql: a_id was left invalid by a failed run, dropped"
    assert await relations(empty_database_url) == {"a"}
    assert await recorded(empty_database_url) == [1]

    await execute(empty_database_url, "TRUNCATE a")
    assert await migrator.up() == [2]


@pytest.mark.parametrize("clause", ["", "IF NOT EXISTS "])
async def test_an_invalid_index_of_a_killed_runner_is_built_anew(
    empty_database_url, tmp_path, clause
):
    index = INDEX.replace("CONCURRENTLY a_id ON", f"CONCURRENTLY {clause}a_id ON")
    migrator = Migrator(empty_database_url, write(tmp_path, A, index))
    await migrator.up(to=1)
    await execute(empty_database_url, "INSERT INTO a VALUES (1), (1)")
    with suppress(asyncpg.UniqueViolationError):
        await execute(empty_database_url, "CREATE UNIQUE INDEX CONCURRENTLY a_id ON a (id)")
    await execute(empty_database_url, "TRUNCATE a")
    assert await relations(empty_database_url) == {"a", "a_id"}

    assert await migrator.up() == [2]
    async with connection_to(empty_database_url) as connection:
        valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'a_id'::regclass"
        assert await connection.fetchval(valid) is True


async def test_an_index_that_was_built_but_not_recorded_passes_with_if_not_exists(
    empty_database_url, tmp_path
):
    migrator = Migrator(empty_database_url, write(tmp_path, A, INDEX))
    await migrator.up()
    await execute(empty_database_url, "DELETE FROM schema_migrations WHERE version = 2")

    with pytest.raises(MigrationStatementError, match=r"already exists .*IF NOT EXISTS"):
        await migrator.up()
    write(tmp_path, A, INDEX.replace("CONCURRENTLY a_id ON", "CONCURRENTLY IF NOT EXISTS a_id ON"))
    assert await migrator.up() == [2]


@pytest.mark.parametrize("options", ["", " transaction:false"])
async def test_a_table_lock_of_another_session_is_waited_for_no_longer_than_allowed(
    empty_database_url, tmp_path, options
):
    alter = f"-- migrate:up{options}\nALTER TABLE a ADD b int;\n-- migrate:down\nSELECT 1;\n"
    migrator = Migrator(empty_database_url, write(tmp_path, A, alter), lock_timeout_seconds=0.2)
    await migrator.up(to=1)

    async with connection_to(empty_database_url) as holder, holder.transaction():
        await holder.execute("LOCK TABLE a")
        async with asyncio.timeout(5):
            with pytest.raises(MigrationStatementError, match=r"^0002_step\.sql line 2:") as caught:
                await migrator.up()

    assert caught.value.sqlstate == "55P03"
    assert "`-- migrate:timeout lock=`" in str(caught.value)
    assert await migrator.up() == [2]


async def test_a_lock_on_the_records_is_waited_for_no_longer_either(empty_database_url, tmp_path):
    migrator = Migrator(empty_database_url, write(tmp_path, A), lock_timeout_seconds=0.2)
    await migrator.up()

    async with connection_to(empty_database_url) as holder, holder.transaction():
        await holder.execute("LOCK TABLE schema_migrations")
        async with asyncio.timeout(5):
            for action in (migrator.verify, migrator.up):
                with pytest.raises(MigrationDatabaseError, match=r"the database failed: .*55P03"):
                    await action()


async def test_a_file_may_change_its_own_statement_timeout(empty_database_url, tmp_path):
    limited = SLOW.replace("-- migrate:up\n", "-- migrate:up\n-- migrate:timeout statement=50ms\n")
    with pytest.raises(MigrationStatementError, match="statement timeout") as caught:
        await Migrator(empty_database_url, write(tmp_path, limited)).up()
    assert caught.value.sqlstate == "57014"

    migrator = Migrator(empty_database_url, write(tmp_path, SLOW), statement_timeout_seconds=0.05)
    with pytest.raises(MigrationStatementError, match="statement timeout"):
        await migrator.up()
    write(
        tmp_path,
        SLOW.replace("-- migrate:up\n", "-- migrate:timeout statement=9s\n-- migrate:up\n"),
    )
    assert await migrator.up() == [1]


async def test_a_session_that_is_cut_off_leaves_nothing_and_frees_the_lock(
    empty_database_url, tmp_path
):
    migrator = Migrator(empty_database_url, write(tmp_path, B, SLOW))
    running = asyncio.ensure_future(migrator.up())
    async with connection_to(empty_database_url) as connection:
        await until_running(connection, "CREATE TABLE a%")
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE query LIKE 'CREATE TABLE a%' AND datname = current_database()"
        )
    with pytest.raises(MigrationStatementError, match=r"^0002_step\.sql line 2: "):
        await running
    assert await recorded(empty_database_url) == [1]
    assert await migrator.up() == [2]


async def test_a_cancelled_run_leaves_nothing_and_frees_the_lock(empty_database_url, tmp_path):
    migrator = Migrator(empty_database_url, write(tmp_path, SLOW), advisory_wait_seconds=0)
    running = asyncio.ensure_future(migrator.up())
    async with connection_to(empty_database_url) as connection:
        await until_running(connection, "CREATE TABLE a%")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert await relations(empty_database_url) == set()
    assert await migrator.up() == [1]


async def test_connection_faults_tell_neither_url_nor_password(empty_database_url, tmp_path):
    write(tmp_path, A)
    urls = {
        "postgresql://u:pass#hunter2@127.0.0.1:1/d": "the connection URL is malformed",
        "mysql://u:hunter2@127.0.0.1:1/d": "the connection URL is malformed",
        "postgresql://u:hunter2@127.0.0.1:1/d": "cannot connect: ",
        urlsplit(empty_database_url)._replace(path="/absent").geturl(): "does not exist",
    }
    for url, reason in urls.items():
        with pytest.raises(MigrationDatabaseError) as caught:
            await Migrator(url, tmp_path).status()
        assert reason in str(caught.value)
        assert "hunter2" not in f"{caught.value} {caught.value.__cause__}"
        assert "://" not in str(caught.value)


async def test_a_server_that_never_answers_is_given_up(tmp_path):
    closing = asyncio.Event()

    async def say_nothing(reader, writer):
        await closing.wait()
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    migrator = Migrator(
        f"postgresql://u@127.0.0.1:{port}/d", write(tmp_path, A), connect_timeout_seconds=0.2
    )
    with pytest.raises(MigrationDatabaseError, match="cannot connect: no answer in time"):
        await migrator.up()
    closing.set()
    server.close()
    await server.wait_closed()


async def test_the_server_is_ready_when_all_that_it_expects_is_applied(
    empty_database_url, tmp_path
):
    migrator = Migrator(empty_database_url, write(tmp_path, A, B))
    expected = expected_versions(tmp_path)
    async with connection_to(empty_database_url) as connection:
        problem = await schema_problem(connection, expected)
        assert problem == "the database was never migrated: run `migrate up`"

        await migrator.up(to=1)
        problem = await schema_problem(connection, expected)
        assert problem == "the database is behind, 0002 not applied: run `migrate up`"

        await migrator.up()
        assert await schema_problem(connection, expected) is None
        assert await schema_problem(connection, expected[:1]) is None, "ahead is no problem"


async def test_every_migration_of_this_service_goes_up_down_and_up_again(empty_database_url):
    migrations = Path(__file__).parents[2] / "migrations"
    migrator = Migrator(empty_database_url, migrations)
    applied = await migrator.up()
    assert await migrator.down(len(applied)) == applied[::-1]
    assert await relations(empty_database_url) == set()
    assert await migrator.up() == applied
    await migrator.verify()
