"""TLS on a descriptor: what closing in either order leaves to read."""

import ssl

import pytest

from tests.fakes.trio_test import trio_test
from tests.fakes.tunnels import tls_pair
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
async def test_a_stopped_one_touches_no_descriptor_any_more() -> None:
    near, far = await tls_pair()
    with far:
        ours = TlsSocket(near)
        ours.stop()

        with pytest.raises(OSError, match="Bad file descriptor"):
            ours.read(10, memoryview(bytearray(10)))
        with pytest.raises(OSError, match="Bad file descriptor"):
            ours.write(b"x")
