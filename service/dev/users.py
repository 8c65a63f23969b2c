"""Which user the servers run as, and where that user can go.

PostgreSQL refuses to run as root, and nothing that listens should. So where we are root, as in most
containers, the servers run as `nobody`; elsewhere they run as whoever started us.
"""

import os
import pwd
import stat
from pathlib import Path
from typing import Final, NamedTuple

from service.dev.errors import DevError

_NOBODY_ID: Final = 65534


class User(NamedTuple):
    uid: int
    gid: int


def server_user() -> User | None:
    """The user to become, or None where servers run as we do."""
    if os.geteuid() != 0:
        return None

    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        return User(_NOBODY_ID, _NOBODY_ID)
    return User(entry.pw_uid, entry.pw_gid)


def require_name(user: User | None) -> None:
    """Checks what initdb needs: a container's `--user 1234` often has no name.

    Raises:
        DevError: The user that servers run as has no entry in /etc/passwd.
    """
    uid = os.geteuid() if user is None else user.uid
    try:
        pwd.getpwuid(uid)
    except KeyError as error:
        raise DevError(
            f"User id {uid} has no entry in /etc/passwd, which PostgreSQL needs to make its data "
            "directory. Add one, run as another user, or set DATABASE_URL."
        ) from error


def can_read(path: Path, user: User | None) -> bool:
    """Whether `user` can come to `path` and read it, or for a program run it."""
    if user is None:
        return True

    resolved = path.resolve()
    needed = stat.S_IROTH | (resolved.stat().st_mode & stat.S_IXUSR) >> 6
    return can_enter(resolved.parent, user) and _grants(resolved, user, needed)


def can_enter(directory: Path, user: User | None) -> bool:
    """Whether `user` passes all directories on the way to this one, and this one."""
    if user is None:
        return True

    resolved = directory.resolve()
    return all(_grants(each, user, stat.S_IXOTH) for each in (resolved, *resolved.parents))


def hand_over(directory: Path, user: User | None) -> None:
    """Makes `user` the owner of a data directory, without touching anything above it.

    Raises:
        DevError: The directory is somebody else's and we are not root.
    """
    owner = directory.stat().st_uid
    if user is None and owner != os.geteuid():
        raise DevError(
            f"{directory} belongs to user id {owner}. "
            "Run as that user or as root, or set DATA_DIR to another directory."
        )

    if user is not None and owner != user.uid:
        for entry in (directory, *directory.rglob("*")):
            os.chown(entry, user.uid, user.gid, follow_symlinks=False)
    directory.chmod(0o700)


def _grants(path: Path, user: User, needed: int) -> bool:
    """Compares mode bits; `needed` is written as for others. Access lists can only cost a copy."""
    found = path.stat()
    if found.st_uid == user.uid:
        needed <<= 6
    elif found.st_gid == user.gid:
        needed <<= 3
    return found.st_mode & needed == needed
