"""Addresses as dictionary keys."""

from ipaddress import ip_address

import pytest

from ztunnel_trio.mesh.keys import address_key, packed_key


@pytest.mark.parametrize("text", ["0.0.0.0", "10.0.0.1", "255.255.255.255", "::", "::1", "::ffff:10.0.0.1"])
def test_the_key_is_the_same_from_both_forms(text: str) -> None:
    ip = ip_address(text)

    assert packed_key(ip.packed) == address_key(ip)


def test_the_families_have_no_key_in_common() -> None:
    assert len({address_key(ip_address(text)) for text in ("0.0.0.1", "::1", "::ffff:0.0.0.1")}) == 3
