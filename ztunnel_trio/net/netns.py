"""Network namespaces as owned descriptors, and the one way to work inside one.

A socket belongs for life to the namespace it was made in, so the proxy enters a pod's namespace only to
make sockets and to read `/proc/sys/net`. `setns` changes the calling thread, so the body of
`Netns.inside` must neither await nor start a thread: everything else on this thread would run in the
pod. If the way back fails the process ends, since no later answer of it could be trusted.

A namespace is known by (device, inode) of its descriptor; holding the descriptor keeps it alive.
"""

import ctypes
import fcntl
import os
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, NewType, Self

from ztunnel_trio.errors import ConfigError
from ztunnel_trio.facts.linux import CLONE_NEWNET, NS_GET_NSTYPE, SO_MARK

NetnsKey = NewType("NetnsKey", tuple[int, int])

THREAD_NETNS: Final = "/proc/thread-self/ns/net"

# os.setns exists from Python 3.12 on.
_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.setns.argtypes = (ctypes.c_int, ctypes.c_int)
_libc.setns.restype = ctypes.c_int


class Netns:
    """One network namespace; owns its descriptor until `close`. Equal if the same namespace."""

    __slots__ = ("_fd", "key")

    key: NetnsKey

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @classmethod
    def adopt(cls, fd: int) -> Self:
        """Take over a descriptor, whatever follows: if it cannot be examined it is closed.

        That it is a namespace at all is not checked here: entering a wrong one fails.

        Raises:
            OSError: fstat failed.
        """
        netns = cls(fd)
        try:
            status = os.fstat(fd)
        except OSError:
            netns.close()
            raise
        netns.key = NetnsKey((status.st_dev, status.st_ino))
        return netns

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open a namespace file, e.g. below `/var/run/netns`.

        Raises:
            OSError: there is none, or it may not be opened.
        """
        return cls.adopt(os.open(path, os.O_RDONLY | os.O_CLOEXEC))

    @classmethod
    def own(cls) -> Self:
        """The namespace the calling thread is in."""
        return cls.open(THREAD_NETNS)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Netns) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        state = "closed" if self._fd < 0 else f"fd {self._fd}"
        return f"Netns(dev={self.key[0]}, inode={self.key[1]}, {state})"

    def fileno(self) -> int:
        """The descriptor, or -1 once closed."""
        return self._fd

    def is_network_namespace(self) -> bool:
        """Whether the kernel says so; for log lines, nothing is refused on its account."""
        try:
            return fcntl.ioctl(self._fd, NS_GET_NSTYPE) == CLONE_NEWNET
        except OSError:
            return False

    def close(self) -> None:
        """Let go of the namespace. Closing twice changes nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def inside(self) -> "_Inside":
        """Run the body with this thread in the namespace. The body must not await or start threads.

        Raises:
            OSError: it could not be entered; the body has not run.
        """
        return _Inside(self._fd)


class _Inside:
    """A stay in a namespace; a generator would take six calls more, for every connection."""

    __slots__ = ("_fd", "_home")

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __enter__(self) -> None:
        self._home = _home()
        _setns(self._fd)

    def __exit__(self, *_: object) -> None:
        _return_or_abort(self._home)


class _Home:
    """A thread's own namespace, opened when it first leaves it; let go when the thread ends."""

    __slots__ = ("fd",)

    def __init__(self) -> None:
        self.fd = os.open(THREAD_NETNS, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # bound: modules go before us
        close(self.fd)


class _Homes(threading.local):
    """What each thread keeps; gone with it."""

    home: _Home | None = None


_homes: Final = _Homes()


def _home() -> int:
    if _homes.home is None:
        _homes.home = _Home()
    return _homes.home.fd


def _setns(fd: int) -> None:
    if _libc.setns(fd, CLONE_NEWNET) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def _return_or_abort(home: int) -> None:
    """Switch back; a thread left in a pod's namespace would serve one pod's traffic from another."""
    try:
        _setns(home)
    except OSError as error:
        os.write(2, f"cannot return to the proxy's own network namespace: {error}\n".encode())
        os.abort()


def check_privileges(mark: int | None) -> None:
    """Try once, at process start, what every pod will need: `setns`, and `SO_MARK` if `mark` is set.

    Raises:
        ConfigError: the container lacks a capability (ztunnel src/inpod/netns.rs, src/proxyfactory.rs).
    """
    try:
        own = Netns.own()
        try:
            with own.inside():
                pass
        finally:
            own.close()
    except OSError as error:
        raise ConfigError(f"failed to set netns: {error.strerror}; is CAP_SYS_ADMIN missing?") from error
    if mark is None:
        return
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.setsockopt(socket.SOL_SOCKET, SO_MARK, mark.to_bytes(4, sys.byteorder))
        except OSError as error:
            text = f"failed to set socket mark: {error.strerror}; is CAP_NET_ADMIN or CAP_NET_RAW missing?"
            raise ConfigError(text) from error
