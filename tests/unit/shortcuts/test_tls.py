import ssl
from collections.abc import Callable

import pytest

from tests.fakes.trio_test import trio_test
from tests.fakes.tunnels import tls_pair
from ztunnel_trio.shortcuts import tls
from ztunnel_trio.shortcuts.tls import Reading

Way = Callable[[ssl.SSLSocket], Reading]

both_ways = pytest.mark.parametrize("way", [tls.short, tls.plain])


@both_ways
@trio_test
async def test_bytes_go_both_ways(way: Way) -> None:
    near, far = await tls_pair()
    with near, far:
        buffer = bytearray(10)
        assert way(near).write(b"hello") == 5
        assert way(far).read(10, memoryview(buffer)) == 5
        assert buffer[:5] == b"hello"


@both_ways
@trio_test
async def test_a_read_that_would_block_says_so(way: Way) -> None:
    near, far = await tls_pair()
    with near, far, pytest.raises(ssl.SSLWantReadError):  # takes what the handshake left
        way(near).read(10, memoryview(bytearray(10)))


@both_ways
@trio_test
async def test_an_end_without_goodbye_is_told(way: Way) -> None:
    near, far = await tls_pair()
    setattr(near, "suppress_ragged_eofs", False)  # noqa: B010  typeshed lacks the attribute
    far.close()
    with near, pytest.raises(ssl.SSLEOFError):
        way(near).read(10, memoryview(bytearray(10)))


def test_the_short_way_works_here_and_is_taken() -> None:
    assert tls.works()
    assert tls.is_short()


def test_where_it_has_moved_it_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "short", lambda sock: sock.no_such_thing)

    assert not tls.works()
