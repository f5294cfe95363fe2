import socket
from collections.abc import Callable

import pytest

from ztunnel_trio.shortcuts import accepting
from ztunnel_trio.shortcuts.accepting import Accept

Way = Callable[[socket.socket], Accept]

both_ways = pytest.mark.parametrize("way", [accepting.short, accepting.plain])


@both_ways
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_connection_is_taken_as_a_non_blocking_socket(way: Way, family: socket.AddressFamily) -> None:
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    with (
        socket.create_server((host, 0), family=family) as listening,
        socket.create_connection(listening.getsockname()[:2]) as calling,
    ):
        sock, peer = way(listening)()
        with sock:
            assert peer == calling.getsockname() == sock.getpeername()
            assert (sock.family, sock.type, sock.proto) == (family, socket.SOCK_STREAM, listening.proto)
            assert not sock.getblocking()
            assert not sock.get_inheritable()


@both_ways
def test_where_there_is_none_that_is_told(way: Way) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        with pytest.raises(BlockingIOError):
            way(listening)()


def test_the_short_way_works_here_and_is_taken() -> None:
    assert accepting.works()
    assert accepting.is_short()


@pytest.mark.parametrize("moved", [None, lambda self: (self, "")], ids=["gone", "another result"])
def test_where_it_has_moved_it_is_not_taken(monkeypatch: pytest.MonkeyPatch, moved: object) -> None:
    monkeypatch.setattr(socket.socket, "_accept", moved, raising=False)

    assert not accepting.works()
