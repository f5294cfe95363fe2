"""RFC 8446 4.1.2: whatever bytes a peer begins with, reading them ends, and well."""

from hypothesis import given
from hypothesis import strategies as st

from ztunnel_trio.wire.client_hello import Incomplete, offered_protocols


@given(st.binary(max_size=300))
def test_arbitrary_bytes_never_raise(data: bytes) -> None:
    found = offered_protocols(data)

    if isinstance(found, Incomplete):
        assert found.wanted > len(data)
    else:
        assert all(name in data for name in found)


@given(st.binary(max_size=200))
def test_an_arbitrary_hello_never_raises(body: bytes) -> None:
    hello = b"\x01" + len(body).to_bytes(3, "big") + body
    record = b"\x16\x03\x01" + len(hello).to_bytes(2, "big") + hello

    found = offered_protocols(record)
    assert not isinstance(found, Incomplete)
    assert all(name in body for name in found)
