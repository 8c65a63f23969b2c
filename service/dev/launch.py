"""Becomes a server process that does not outlive its owner.

Run as a file (`python -I -S launch.py OWNER DEATH_SIGNAL UID GID PROGRAM ...`) between fork and
exec. It does what a `preexec_fn` would do, but that one runs Python in a forked copy of a process
with threads, which can deadlock and which Python 3.12 warns about. The process keeps its id.
"""

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1
_KEEP = -1


def become(uid: int, gid: int) -> None:
    """Gives up root for good; -1 keeps the user. Undoes `die_with`: call this one first."""
    if uid == _KEEP:
        return

    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)


def die_with(owner_pid: int, death_signal: int) -> None:
    """Has the kernel send `death_signal` to this process when its owner dies, however it dies.

    The owner is, for Linux, the thread that started us: servers are started on the main thread.
    """
    if sys.platform != "linux":
        return

    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != owner_pid:
        sys.exit(f"process {owner_pid}, the owner, is gone")  # It died before we asked.


def main() -> None:
    owner_pid, death_signal, uid, gid = (int(argument) for argument in sys.argv[1:5])
    command = sys.argv[5:]

    os.umask(0o077)
    become(uid, gid)
    die_with(owner_pid, death_signal)
    os.execv(command[0], command)  # noqa: S606  # The command is ours, there is no shell to need.


if __name__ == "__main__":
    main()
