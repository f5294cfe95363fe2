"""The protocols a TLS client offers, read from its hello, however that is cut."""

import ssl

import pytest

from ztunnel_trio.wire.client_hello import MOST_BYTES, Incomplete, offered_groups, offered_protocols


def hello(*protocols: str, tls12: bool = False) -> bytes:
    """The first flight of OpenSSL's client."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if protocols:
        context.set_alpn_protocols(list(protocols))
    if tls12:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="somewhere.example")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


@pytest.mark.parametrize("tls12", [False, True])
@pytest.mark.parametrize("protocols", [(), ("h2",), ("http/1.1",), ("http/1.1", "h2", "spdy/3")])
def test_the_protocols_are_those_offered(protocols: tuple[str, ...], tls12: bool) -> None:
    assert offered_protocols(hello(*protocols, tls12=tls12)) == tuple(map(str.encode, protocols))


def test_the_groups_are_those_offered_in_their_order() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.set_ecdh_curve("secp384r1")
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing).do_handshake()

    assert offered_groups(outgoing.read()) == (24,)
    assert len(offered_groups(hello("h2"))) > 2
    assert offered_groups(b"") == offered_groups(b"GET / HTTP/1.1") == ()


def test_a_hello_cut_short_anywhere_asks_for_the_rest() -> None:
    whole = hello("h2")

    for end in range(len(whole)):
        found = offered_protocols(whole[:end])
        assert isinstance(found, Incomplete)
        assert end < found.wanted <= len(whole)


def test_a_hello_in_many_records_is_one() -> None:
    whole = hello("http/1.1")
    message = whole[5:]
    records = b"".join(b"\x16\x03\x01\x00\x01" + message[at : at + 1] for at in range(len(message)))

    assert offered_protocols(records) == (b"http/1.1",)
    for end in range(0, len(records), 7):
        found = offered_protocols(records[:end])
        assert isinstance(found, Incomplete)
        assert end < found.wanted <= len(records)


def test_no_hello_is_waited_for_beyond_what_openssl_takes() -> None:
    found = offered_protocols(b"\x16\x03\x01\xff\xff\x01\xff\xff\xff")

    assert isinstance(found, Incomplete)
    assert found.wanted > MOST_BYTES


@pytest.mark.parametrize(
    "data",
    [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x04\x01\x00\x00\x00", b"\x16\x03\x01\x00\x00", bytes(64)],
)
def test_what_is_no_hello_offers_nothing(data: bytes) -> None:
    assert offered_protocols(data) == ()
