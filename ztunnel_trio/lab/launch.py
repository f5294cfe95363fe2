"""Starts a program in a namespace: `python -m ztunnel_trio.lab.launch PARENT NETNS RESOLV COMMAND [ARG...]`.

NETNS is a path or an inherited descriptor's number, RESOLV a file that becomes the program's
/etc/resolv.conf (`-`: leave it). The process id stays the same, and the program ends when its parent does:
a lab that is killed leaves no proxy behind.
"""

import os
import sys
from collections.abc import Sequence
from typing import Final

from ztunnel_trio.lab import privilege

_CLONE_NEWNET: Final = 0x40000000
RESOLV_CONF: Final = "/etc/resolv.conf"


def launch(parent: int, netns: str, resolv: str, command: Sequence[str]) -> None:
    """Become `command` inside the namespace; does not return.

    Raises:
        OSError: the namespace, the bind mount or the program is refused.
    """
    if parent:
        privilege.die_with_parent(parent)
    fd = int(netns) if netns.isdigit() else os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    enter(fd)
    os.close(fd)
    if resolv != "-":
        privilege.private_mounts()
        privilege.bind_file(resolv, os.path.realpath(RESOLV_CONF))
    os.execvp(command[0], list(command))


def enter(fd: int) -> None:
    """Move this process into the network namespace behind the descriptor.

    Raises:
        OSError: it is none, or the kernel refuses.
    """
    privilege.join(fd, _CLONE_NEWNET)


def main(arguments: Sequence[str]) -> None:
    """The command line; whatever fails is said on stderr."""
    parent, netns, resolv, *command = arguments
    try:
        launch(int(parent), netns, resolv, command)
    except OSError as error:
        sys.exit(f"cannot start {command[0]} in its namespace: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
