"""Finds the servers' programs in their wheels, and puts them where the servers' user can run them.

A checkout below root's home (mode 0700) is normal in containers, and there `nobody` can run nothing
of its `.venv`. Programs are then copied, once per version, to a directory that all can read.
"""

import hashlib
import importlib.util
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from service.dev.errors import DevError
from service.dev.users import User, can_enter, can_read

_CACHES: Final = (Path("/var/cache"), Path("/var/tmp"), Path("/tmp"))  # noqa: S108  # See _claimed.
_CACHE_NAME: Final = "chat-memory-servers"
_PYTHON: Final = ("*.py", "*.pyc", "__pycache__")  # Not needed to run the programs.


def package_directory(package: str) -> Path | None:
    """Where a package is installed, without importing it; None where it is not."""
    spec = importlib.util.find_spec(package)
    locations = spec.submodule_search_locations if spec else None
    return Path(locations[0]) if locations else None


def runnable(package: str, binary: str, user: User | None) -> Path:
    """The full path of a package's program, which `user` can run.

    Args:
        package: The import name of the package that carries the program.
        binary: A pattern below the package's directory.
        user: None where it runs as we do.

    Raises:
        DevError: The package or the program is not installed, or there is no place for a copy.
    """
    directory = package_directory(package)
    found = next(directory.glob(binary), None) if directory else None
    if directory is None or found is None:
        raise DevError(f"{package} is not installed, or not for this platform: run `make env`.")

    if can_read(found, user):
        return found
    return _copy(directory, user) / found.relative_to(directory.parent)


def _copy(package: Path, user: User | None) -> Path:
    """A readable copy of the package and of the shared libraries that its wheel put beside it."""
    sources = [package, *package.parent.glob(f"{package.name}.libs")]
    cache = _cache(user)
    target = cache / f"{package.name}-{_fingerprint(sources)}"
    if target.is_dir():
        return target

    work = Path(tempfile.mkdtemp(prefix=".new-", dir=cache))
    for source in sources:
        shutil.copytree(source, work / source.name, ignore=shutil.ignore_patterns(*_PYTHON))
    for path in _tree(work):
        path.chmod(0o755 if path.is_dir() or path.stat().st_mode & stat.S_IXUSR else 0o644)
    try:
        work.rename(target)
    except OSError:  # Another run was faster.
        shutil.rmtree(work)
    return target


def _cache(user: User | None) -> Path:
    for parent in _CACHES:
        if parent.is_dir() and can_enter(parent, user) and _allows_programs(parent):
            cache = parent / _CACHE_NAME
            if _claimed(cache):
                return cache
    raise DevError(
        "The servers cannot run as root, and no directory was found where their user could run a "
        "copy of them. Run as an ordinary user."
    )


def _claimed(cache: Path) -> bool:
    """Whether the directory is ours alone to write: /tmp is open to everybody, links included."""
    try:
        cache.mkdir(exist_ok=True)
        found = cache.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            return False
        cache.chmod(0o755)
    except OSError:
        return False
    return True


def _allows_programs(directory: Path) -> bool:
    return not os.statvfs(directory).f_flag & getattr(os, "ST_NOEXEC", 0)


def _fingerprint(sources: list[Path]) -> str:
    digest = hashlib.sha256()
    for source in sources:
        for path in sorted(path for path in _tree(source) if path.is_file()):
            if not any(path.match(pattern) for pattern in _PYTHON):
                described = f"{path.relative_to(source.parent)} {path.stat().st_size}\n"
                digest.update(described.encode())
    return digest.hexdigest()[:16]


def _tree(root: Path) -> Iterator[Path]:
    yield root
    yield from root.rglob("*")
