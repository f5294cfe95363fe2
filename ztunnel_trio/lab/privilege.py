"""What the lab needs of the kernel before it can build anything: root, or a user namespace to be root in.

As root nothing is done. Without, the process moves into a user namespace of its own with itself as uid 0,
and into a network and a mount namespace that belong to it; this works only while the process has one thread,
so it is the first thing a command does. Where the kernel or its policy forbids that, `MissingPrivilege` says
which switch to look at.
"""

import ctypes
import os
import signal
from pathlib import Path
from typing import Final

_CLONE_NEWNS: Final = 0x00020000
_CLONE_NEWUSER: Final = 0x10000000
_CLONE_NEWNET: Final = 0x40000000
_MS_REC: Final = 0x4000
_MS_PRIVATE: Final = 1 << 18
_MS_BIND: Final = 0x1000
_PR_SET_PDEATHSIG: Final = 1
_CAP_NET_ADMIN, _CAP_NET_RAW, _CAP_SYS_ADMIN = 12, 13, 21
_NEEDED: Final = {
    "CAP_NET_ADMIN": _CAP_NET_ADMIN,
    "CAP_NET_RAW": _CAP_NET_RAW,
    "CAP_SYS_ADMIN": _CAP_SYS_ADMIN,
}

_libc: Final = ctypes.CDLL(None, use_errno=True)


class MissingPrivilege(Exception):
    """The lab cannot be built by this user here; the text says what is missing."""


def missing_capabilities() -> list[str]:
    """The capabilities the lab needs and this process has not, by name."""
    status = Path("/proc/self/status").read_text()
    effective = int(next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")), 16)
    return [name for name, number in _NEEDED.items() if not effective >> number & 1]


def become_able() -> str | None:
    """Make sure that namespaces, links and raw sockets may be made, in a user namespace if need be.

    Returns a line to tell the user when a user namespace was entered, None when root was enough.

    Raises:
        MissingPrivilege: neither is to be had.
    """
    missing = missing_capabilities()
    if not missing:
        return None
    uid, gid = os.geteuid(), os.getegid()
    try:
        unshare(_CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWNS)
    except OSError as error:
        raise MissingPrivilege(
            f"this needs root ({', '.join(missing)} missing), or a user namespace, which the kernel refuses: "
            f"{error.strerror}; see kernel.unprivileged_userns_clone, user.max_user_namespaces and "
            "kernel.apparmor_restrict_unprivileged_userns"
        ) from error
    try:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    except OSError as error:
        raise MissingPrivilege(
            f"this needs root: the user namespace made instead got no user ({error.strerror})"
        ) from error
    if still := missing_capabilities():
        raise MissingPrivilege(
            f"this needs root: even in a user namespace {', '.join(still)} is missing "
            "(kernel.apparmor_restrict_unprivileged_userns?)"
        )
    return f"not root: working in a user namespace of uid {uid}"


def unshare(flags: int) -> None:
    """`unshare(2)` for the calling thread.

    Raises:
        OSError: the kernel refuses.
    """
    _checked(_libc.unshare(flags), "unshare")


def join(fd: int, kind: int) -> None:
    """`setns(2)`: move the calling thread into the namespace behind the descriptor.

    Raises:
        OSError: it is none of this kind, or the kernel refuses.
    """
    _checked(_libc.setns(fd, kind), "setns")


def private_mounts() -> None:
    """Give the process a mount namespace of its own, from which nothing spreads.

    Raises:
        OSError: the kernel refuses.
    """
    unshare(_CLONE_NEWNS)
    _checked(
        _libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None), "make mounts private"
    )


def bind_file(source: str, target: str) -> None:
    """Show the file `source` at `target`, in this mount namespace.

    Raises:
        OSError: the kernel refuses.
    """
    flags = ctypes.c_ulong(_MS_BIND)
    _checked(_libc.mount(os.fsencode(source), os.fsencode(target), None, flags, None), f"bind {target}")


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends; at once if it already has.

    Raises:
        OSError: the kernel refuses.
    """
    _checked(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
    if os.getppid() != parent:
        raise SystemExit(1)


def _checked(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
