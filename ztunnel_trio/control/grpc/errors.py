"""How a call ends badly: every foreign exception becomes one of the `GrpcFailed` family."""

import socket

from ztunnel_trio.errors import ZtunnelError
from ztunnel_trio.facts.grpc import GrpcCode
from ztunnel_trio.observe.words import os_error_text


class GrpcFailed(ZtunnelError):
    """A call ended badly. `answered` tells whether the server had sent its response headers before."""

    def __init__(self, code: GrpcCode, message: str, *, answered: bool = False, source: str = "") -> None:
        super().__init__(f"{code.title}: {message}" + (f": {source}" if source else ""))
        self.code = code
        self.message = message
        self.answered = answered
        self.source = source


class NotConnected(GrpcFailed):
    """No connection came about: name, TCP, TLS or the peer's name; `source` says which."""

    def __init__(self, source: str) -> None:
        super().__init__(GrpcCode.UNKNOWN, "client error (Connect)", source=source)


class BadStatus(GrpcFailed):
    """The server answered with a status other than OK, or the call's deadline passed."""


class ConnectionEnded(GrpcFailed):
    """The connection or the stream ended under the call: GOAWAY, reset, crash, silence."""

    def __init__(self, source: str, *, answered: bool) -> None:
        super().__init__(GrpcCode.UNKNOWN, "connection lost", answered=answered, source=source)


class BadMessage(GrpcFailed):
    """The server sent a message that is too large, cut short or compressed."""

    def __init__(self, message: str, code: GrpcCode = GrpcCode.INTERNAL) -> None:
        super().__init__(code, message, answered=True)


def failure_text(error: OSError) -> str:
    """A failure to connect or to go on; a name that cannot be looked up has no error of the system's."""
    if isinstance(error, socket.gaierror):
        return f"failed to lookup address information: {error.strerror}"
    return os_error_text(error)
