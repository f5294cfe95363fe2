"""Processes of the node by the network namespace they are in, and a process held so that it stays itself.

A number names another process once its process has ended. A pidfd does not: who holds one can ask whether
its process still runs, and what was read of the number in between was then said of that process.
"""

import os
import select
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from ztunnel_trio.net.netns import NetnsKey

PROC: Final = Path("/proc")
SANDBOX: Final = "pause"
"""The command of a pod's sandbox: it holds namespaces, and is no workload."""
CAP_SYS_PTRACE: Final = 19  # linux/capability.h
MOST_CANDIDATES: Final = 32
"""Processes of one namespace that are looked at; any of a pod's containers may be attested."""


def processes_by_netns(proc: Path = PROC) -> dict[NetnsKey, list[int]]:
    """All processes that can be seen, by network namespace, the oldest first, without sandboxes.

    Some 20 us a process: not for the event loop's thread.
    """
    found: dict[NetnsKey, list[tuple[int, int]]] = {}
    for name in os.listdir(proc):
        if not name.isdecimal():
            continue
        key, told = netns_of(int(name), proc), _command_and_start(int(name), proc)
        if key is not None and told is not None and told[0] != SANDBOX:
            found.setdefault(key, []).append((told[1], int(name)))
    return {key: [pid for _, pid in sorted(pids)[:MOST_CANDIDATES]] for key, pids in found.items()}


def netns_of(pid: int, proc: Path = PROC) -> NetnsKey | None:
    """The network namespace of a process as (device, inode); None where it has ended or may not be seen."""
    try:
        status = os.stat(proc / str(pid) / "ns" / "net")
    except OSError:
        return None
    return NetnsKey((status.st_dev, status.st_ino))


def sees_other_processes(proc: Path = PROC) -> bool:
    """Whether more than our own container can be seen: PID 1 is then neither we nor who started us."""
    return os.getpid() != 1 and os.getppid() != 1 and (proc / "1").exists()


def may_look_into_others(proc: Path = PROC) -> bool:
    """Whether the namespaces of other users' processes may be read: with CAP_SYS_PTRACE (ptrace(2))."""
    fields = dict(line.split(":\t", 1) for line in (proc / "self" / "status").read_text().splitlines())
    return bool(int(fields["CapEff"], 16) >> CAP_SYS_PTRACE & 1)


def _command_and_start(pid: int, proc: Path) -> tuple[str, int] | None:
    """A process's command, and when it began in ticks (proc(5), `stat` fields 2 and 22)."""
    try:
        text = (proc / str(pid) / "stat").read_text("utf-8", "replace")
    except OSError:
        return None
    command, _, rest = text.partition("(")[2].rpartition(")")
    fields = rest.split()
    return (command, int(fields[19])) if len(fields) > 19 else None


class HeldProcess:
    """A process that is what it was when it was taken hold of, until `has_ended`. Closes its descriptor."""

    __slots__ = ("_fd", "pid")

    def __init__(self, pid: int) -> None:
        """Take hold of a process.

        Raises:
            OSError: there is none of that number (ESRCH), or no descriptor is left.
        """
        self._fd = os.pidfd_open(pid)
        self.pid = pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)

    def fileno(self) -> int:
        """A descriptor that is readable once the process has ended (pidfd_open(2))."""
        return self._fd

    @property
    def has_ended(self) -> bool:
        """Whether the process is over; what its number says is then no longer about it."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(0))

    def is_in(self, netns: NetnsKey) -> bool:
        """Whether it runs, in that network namespace."""
        return netns_of(self.pid) == netns and not self.has_ended
