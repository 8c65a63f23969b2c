"""The directory of one server: its data, and beside them its log, its port and its lock."""

import fcntl
import os
import socket
from pathlib import Path
from typing import Final

from service.dev.errors import DevError, DirectoryBusy
from service.dev.users import User, hand_over

HOST: Final = "127.0.0.1"


class DirectoryLock:
    """One run at a time in a directory. The kernel frees it when the run dies."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file: int | None = None

    def take(self) -> None:
        """Makes the directory if needed.

        Raises:
            DirectoryBusy: Another run has it.
            DevError: It cannot be made or written.
        """
        if self._file is not None:
            return

        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            file = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise DevError(f"DATA_DIR cannot be used: {error}") from error
        self._file = self._locked(file)

    def free(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _locked(self, file: int) -> int:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(file, 20, 0).decode().strip() or "unknown"
            os.close(file)
            raise DirectoryBusy(self._directory, owner) from error

        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
        return file


class Home:
    def __init__(self, directory: Path, *, data: str) -> None:
        self.directory: Final = directory.resolve()
        self.data: Final = self.directory / data
        self.log: Final = self.directory / "server.log"
        self._port_file = self.directory / "port"
        self._lock = DirectoryLock(self.directory)

    def open(self) -> None:
        """Takes the directory for this run and begins a new log; the last one is kept.

        Raises:
            DirectoryBusy: Another run has it.
        """
        self._lock.take()
        if self.log.exists():
            self.log.replace(self.log.with_suffix(".log.previous"))
        self.log.touch(mode=0o600)

    def close(self) -> None:
        self._lock.free()

    def make_data(self, user: User | None) -> None:
        self.data.mkdir(mode=0o700, exist_ok=True)
        hand_over(self.data, user)

    def port(self, wanted: int | None) -> int:
        """The wanted port, else the last one while it is free, else any free one."""
        if wanted is not None:
            return wanted

        last = self._last_port()
        port = last if last is not None and _is_free(last) else _free_port()
        self._port_file.write_text(f"{port}\n")
        return port

    def _last_port(self) -> int | None:
        try:
            return int(self._port_file.read_text())
        except (FileNotFoundError, ValueError):
            return None


def _is_free(port: int) -> bool:
    with socket.socket() as candidate:
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind((HOST, port))
        except OSError:
            return False
    return True


def _free_port() -> int:
    with socket.socket() as candidate:
        candidate.bind((HOST, 0))
        port: int = candidate.getsockname()[1]
    return port
