"""Addresses as dictionary keys: small, and hashed without a Python call."""

from ztunnel_trio.model.address import IPAddress

AddressKey = int | bytes
"""The number of an IPv4, the bytes of an IPv6 address; never equal across the families."""


def address_key(ip: IPAddress) -> AddressKey:
    """The key of an address."""
    return int(ip) if ip.version == 4 else ip.packed


def packed_key(packed: bytes) -> AddressKey:
    """As `address_key`, from the packed form."""
    return int.from_bytes(packed, "big") if len(packed) == 4 else packed
