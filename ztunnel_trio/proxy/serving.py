"""Where a connection's failure stops travelling."""

import socket
from collections.abc import Awaitable, Callable

import trio

from ztunnel_trio.model.address import SocketAddress
from ztunnel_trio.observe.log import get_logger

log = get_logger("proxy")

Handler = Callable[[socket.socket, SocketAddress], Awaitable[None]]


async def serve_one(handler: Handler, sock: socket.socket, peer: SocketAddress) -> None:
    """Serve one accepted connection, which this owns from here on."""
    with sock:
        try:
            await handler(sock, peer)
        except* (OSError, trio.BrokenResourceError) as group:
            log.debug("connection from %s ended: %s", peer, group.exceptions[0])
        except* Exception as group:  # a bug: loud, and contained
            log.error("connection from %s: its handler failed", peer, exc_info=group)


async def contained(what: str, child: Callable[[], Awaitable[None]]) -> None:
    """Run a child whose failure concerns nobody else."""
    try:
        await child()
    except* Exception as group:  # a bug: loud, and contained
        log.error("%s failed", what, exc_info=group)
