"""gRPC for Trio: the only room that knows a second event loop exists.

grpclib speaks gRPC on asyncio; trio-asyncio runs that loop inside Trio. Messages pass as bytes, so neither
side of this room knows what they mean. Every foreign exception becomes one of the `GrpcFailed` family.

Theory of operation. `open_control_loop()` opens the asyncio loop for everything below it. Each attempt to
talk to a server is one `open_channel()`: its own TCP connection, its own SSLContext (a rotated root file is
read). What grpclib does not do is done in `protocol`, `call`, `inbox` and `channel`, on private names, hence
the pinned version.
"""

from ztunnel_trio.control.grpc.call import CallStream
from ztunnel_trio.control.grpc.channel import Channel, NotTrusted, Security, open_agent_channel, open_channel
from ztunnel_trio.control.grpc.errors import BadMessage, BadStatus, ConnectionEnded, GrpcFailed, NotConnected
from ztunnel_trio.control.grpc.inbox import WINDOW_BYTES
from ztunnel_trio.control.grpc.loop import open_control_loop
from ztunnel_trio.control.grpc.server import Serve, Served, ServerCall, serve
from ztunnel_trio.control.grpc.target import (
    DEFAULT_SETTINGS,
    ChannelSettings,
    PemRoots,
    Roots,
    Target,
)
from ztunnel_trio.control.grpc.tls import server_context

__all__ = [
    "DEFAULT_SETTINGS",
    "WINDOW_BYTES",
    "BadMessage",
    "BadStatus",
    "CallStream",
    "Channel",
    "ChannelSettings",
    "ConnectionEnded",
    "GrpcFailed",
    "NotConnected",
    "NotTrusted",
    "PemRoots",
    "Roots",
    "Security",
    "Serve",
    "Served",
    "ServerCall",
    "Target",
    "open_agent_channel",
    "open_channel",
    "open_control_loop",
    "serve",
    "server_context",
]
