"""TLS on a descriptor: what closing in either order leaves to read."""

import ssl

import pytest

from tests.fakes.trio_test import trio_test
from tests.fakes.tunnels import tls_pair
from ztunnel_trio.net.engine import Engine
from ztunnel_trio.net.transport import TlsSocket


@trio_test
async def test_after_both_have_said_goodbye_there_is_an_end_to_read() -> None:
    near, far = await tls_pair()
    ours, theirs = TlsSocket(near), TlsSocket(far)
    theirs.finish()

    ours.finish()

    assert ours.read(10, memoryview(bytearray(10))) == 0
    ours.stop()
    theirs.stop()


@trio_test
async def test_after_our_goodbye_alone_the_peer_is_still_read() -> None:
    near, far = await tls_pair()
    ours, theirs = TlsSocket(near), TlsSocket(far)
    ours.finish()
    try:
        theirs.write(b"late")
        buffer = bytearray(10)
        assert ours.read(10, memoryview(buffer)) == 4
    except ssl.SSLWantReadError:
        raise AssertionError("the bytes are there already on loopback") from None
    assert buffer[:4] == b"late"
    ours.stop()
    theirs.stop()


@trio_test
async def test_a_drained_one_is_known_without_reading() -> None:
    near, far = await tls_pair()
    ours, theirs = TlsSocket(near), TlsSocket(far)
    assert not ours.is_drained()  # nobody looks at it yet, so nobody knows
    ours.start(Engine(), Unmoved())
    with pytest.raises(ssl.SSLWantReadError):
        ours.read(10, memoryview(bytearray(10)))

    assert ours.is_drained()
    theirs.write(b"x")
    assert not ours.is_drained()
    ours.stop()
    theirs.stop()


class Unmoved:
    """An end that nothing is told."""

    def ready(self, flags: int) -> None:
        raise AssertionError(flags)

    def go_on(self) -> None:
        raise AssertionError

    def broke(self, error: Exception) -> None:
        raise AssertionError from error


@trio_test
async def test_a_stopped_one_touches_no_descriptor_any_more() -> None:
    near, far = await tls_pair()
    with far:
        ours = TlsSocket(near)
        ours.stop()

        with pytest.raises(OSError, match="Bad file descriptor"):
            ours.read(10, memoryview(bytearray(10)))
        with pytest.raises(OSError, match="Bad file descriptor"):
            ours.write(b"x")
