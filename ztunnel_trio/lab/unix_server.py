"""gRPC over Unix sockets, for stand-ins of what listens there."""

import contextlib
import os
import socket
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import trio

from ztunnel_trio.control import grpc


async def serve_at(
    path: Path,
    handlers: Mapping[str, grpc.Serve],
    context: ssl.SSLContext | None,
    *,
    task_status: "trio.TaskStatus[grpc.Served]" = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Listen on a Unix socket until cancelled; what was left there of an earlier one is replaced.

    Raises:
        OSError: no socket can be made there.
    """
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(os.fspath(path))
        listening.listen(128)
    except OSError:
        listening.close()
        raise
    await grpc.serve(handlers, sock=listening, ssl_context=context, task_status=task_status)
