"""What is refused, and whether it matters. Options that are taken: test_sockets.py."""

import errno
import os
import socket

import pytest

from ztunnel_trio.facts.linux import IP_TRANSPARENT, IPV6_TRANSPARENT, SO_MARK
from ztunnel_trio.net.foreign import TRANSPARENT
from ztunnel_trio.net.socket_options import SocketOptions, SocketSettings

MARKED = SocketSettings(mark=0xFFFFFFFF, user_timeout=True)


class Refusing(socket.socket):
    """A socket that refuses these options, as in a container without a capability, and counts the others."""

    refused: frozenset[int] = frozenset()

    def setsockopt(self, level: int, option: int, value: int | bytes) -> None:  # type: ignore[override]
        if option in self.refused:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        super().setsockopt(level, option, value)


def test_a_mark_that_is_not_permitted_is_an_error() -> None:
    with Refusing() as sock:
        sock.refused = frozenset({SO_MARK})
        with pytest.raises(PermissionError):
            SocketOptions(MARKED).of_dialling()(sock)


@pytest.mark.parametrize(
    ("family", "option"), [(socket.AF_INET, IP_TRANSPARENT), (socket.AF_INET6, IPV6_TRANSPARENT)]
)
def test_a_foreign_address_that_is_not_permitted_is_told(
    family: socket.AddressFamily, option: int, caplog: pytest.LogCaptureFixture
) -> None:
    with Refusing(family) as sock:
        sock.refused = frozenset({option})
        SocketOptions(SocketSettings(user_timeout=True)).of_dialling(TRANSPARENT[family])(sock)

        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) > 0
    assert [record.getMessage() for record in caplog.records] == [
        "failed to set freebind: [Errno 1] Operation not permitted"
    ]


@pytest.mark.parametrize("option", [socket.TCP_KEEPINTVL, socket.TCP_USER_TIMEOUT])
def test_a_courtesy_that_is_refused_costs_only_itself(option: int) -> None:
    with Refusing() as sock:
        sock.refused = frozenset({option})
        SocketOptions(SocketSettings(user_timeout=True)).of_dialling()(sock)

        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 180
        is_timed = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) > 0
        assert is_timed == (option != socket.TCP_USER_TIMEOUT)
