"""SOCKS5 for pods that ask for it (RFC 1928): the greeting without authentication, and CONNECT.

`Negotiation` tells how many bytes it wants next and takes no more, so that what a client sends ahead stays in
the socket for the relay. Refusals deviate from the RFC as the reference does: all problems are answered in
the reply form, even those of the greeting.
"""

from dataclasses import dataclass
from enum import Enum, IntEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from ztunnel_trio.errors import WeBrokeProtocol
from ztunnel_trio.model.address import HostPort, SocketAddress, canonical

VERSION: Final = 5
NO_AUTHENTICATION: Final = 0
CONNECT: Final = 1


class ReplyCode(IntEnum):
    """The codes of RFC 1928 6 that are sent; 7 stands for every problem of the protocol."""

    SUCCEEDED = 0
    GENERAL_FAILURE = 1
    HOST_UNREACHABLE = 4
    COMMAND_NOT_SUPPORTED = 7


class AddressType(IntEnum):
    IPV4 = 1
    NAME = 3
    IPV6 = 4


@dataclass(frozen=True, slots=True)
class ConnectRequested:
    """The client wants a connection to an address, or to a name that is to be resolved first."""

    target: SocketAddress | HostPort


@dataclass(frozen=True, slots=True)
class NegotiationFailed:
    """Nothing comes of it: the reply is among the outgoing bytes, then the connection is to be closed."""

    text: str


Event = ConnectRequested | NegotiationFailed


class _Step(Enum):
    GREETING = "greeting"  # version, number of methods
    METHODS = "methods"
    REQUEST = "request"  # version, command, reserved, address type
    NAME_LENGTH = "name length"
    ADDRESS = "address"  # and port
    ANSWER = "answer"  # ours to give
    DONE = "done"


class Negotiation:
    """One client's negotiation: bytes in by `receive`, bytes out by `outgoing`, at most 257 held.

    `has_names` says whether names can be resolved at all, that is whether the DNS proxy runs.
    """

    __slots__ = ("_address_type", "_has_names", "_held", "_outgoing", "_step", "_total")

    def __init__(self, *, has_names: bool) -> None:
        self._has_names = has_names
        self._step = _Step.GREETING
        self._total = 2
        self._held = b""
        self._outgoing = b""
        self._address_type = AddressType.IPV4

    @property
    def wanted(self) -> int:
        """How many bytes to read next, at most; 0 once the request is complete."""
        return self._total - len(self._held)

    def receive(self, data: bytes) -> Event | None:
        """Take bytes from the client; None while more are wanted.

        Raises:
            WeBrokeProtocol: more bytes than `wanted`.
        """
        if len(data) > self.wanted:
            raise WeBrokeProtocol(f"{len(data)} bytes given, {self.wanted} wanted")
        self._held += data
        if not data or self.wanted:
            return None
        whole, self._held, self._total = self._held, b"", 0
        return self._advance(whole)

    def end(self) -> NegotiationFailed:
        """The client stopped sending before the request was complete, or reading from it failed."""
        return self.refuse(ReplyCode.GENERAL_FAILURE, "early eof")

    def accept(self) -> None:
        """Answer a requested connection with success; it is not dialled before that."""
        if self._step is not _Step.ANSWER:
            raise WeBrokeProtocol(f"success at step {self._step.value}")
        self._step = _Step.DONE
        self._outgoing += bytes((VERSION, ReplyCode.SUCCEEDED, 0, AddressType.IPV4, 0, 0, 0, 0, 0, 0))

    def refuse(self, code: ReplyCode, text: str) -> NegotiationFailed:
        """Answer with a failure, e.g. of the name's resolution, and want nothing more."""
        if self._step is _Step.DONE:
            raise WeBrokeProtocol("refused after the answer")
        self._step, self._total, self._held = _Step.DONE, 0, b""
        self._outgoing += bytes((VERSION, code, 0, AddressType.IPV4, 0, 0, 0, 0, 0, 0))
        return NegotiationFailed(text)

    def outgoing(self) -> bytes:
        """What is to be sent now; asking takes it."""
        outgoing, self._outgoing = self._outgoing, b""
        return outgoing

    def _broken(self, text: str) -> NegotiationFailed:
        return self.refuse(ReplyCode.COMMAND_NOT_SUPPORTED, text)

    def _want(self, step: _Step, total: int) -> None:
        self._step, self._total = step, total

    def _advance(self, whole: bytes) -> Event | None:
        """Act on the bytes a step waited for; RFC 1928 3 and 4, checks in the reference's order."""
        if self._step is _Step.GREETING:
            if whole[0] != VERSION:
                return self._broken(f"unsupported version {whole[0]}")
            if whole[1] == 0:
                return self._broken("methods cannot be zero")
            self._want(_Step.METHODS, whole[1])
        elif self._step is _Step.METHODS:
            if NO_AUTHENTICATION not in whole:
                return self._broken("only unauthenticated is supported")
            self._outgoing += bytes((VERSION, NO_AUTHENTICATION))
            self._want(_Step.REQUEST, 4)
        elif self._step is _Step.REQUEST:
            return self._take_request(whole)
        elif self._step is _Step.NAME_LENGTH:
            self._want(_Step.ADDRESS, whole[0] + 2)
        else:
            return self._take_address(whole[:-2], int.from_bytes(whole[-2:], "big"))
        return None

    def _take_request(self, whole: bytes) -> NegotiationFailed | None:
        version, command, _, address_type = whole
        if version != VERSION:
            return self._broken(f"unsupported version {version}")
        if command != CONNECT:
            return self._broken(f"unsupported command {command}")
        match address_type:
            case AddressType.IPV4:
                self._want(_Step.ADDRESS, 4 + 2)
            case AddressType.IPV6:
                self._want(_Step.ADDRESS, 16 + 2)
            case AddressType.NAME:
                self._want(_Step.NAME_LENGTH, 1)
            case _:
                return self._broken(f"unsupported address type {address_type}")
        self._address_type = AddressType(address_type)
        return None

    def _take_address(self, address: bytes, port: int) -> Event:
        target: SocketAddress | HostPort
        if self._address_type is AddressType.NAME:
            try:
                name = address.decode()
            except UnicodeDecodeError:
                return self._broken("invalid domain, not utf-8")
            if not self._has_names:
                return self._broken("unsupported hostname lookup, requires DNS enabled")
            target = HostPort(name, port)
        else:
            ip = IPv4Address(address) if self._address_type is AddressType.IPV4 else IPv6Address(address)
            target = SocketAddress(canonical(ip), port)
        self._step = _Step.ANSWER
        return ConnectRequested(target)
