"""The bytes a workload is kept in until somebody asks about it: two numbers, its addresses, its name."""

from struct import Struct
from typing import Final

HEAD: Final = Struct("<III")  # kind, node's locality, length of the addresses
pack_head: Final = HEAD.pack
unpack_head: Final = HEAD.unpack_from


def name_tail(uid: str, name: str) -> bytes:
    """The name of a workload as it ends its record: nothing where the uid ends with it, as a pod's does."""
    return b"" if uid.endswith("/" + name) and "/" not in name else b"=" + name.encode()


def name_of(uid: str, tail: bytes) -> str:
    return tail[1:].decode() if tail else uid.rpartition("/")[2]


def join_addresses(addresses: tuple[bytes, ...]) -> bytes:
    """Addresses as one block: a lone one as it is, several each after its length."""
    if len(addresses) == 1:
        return addresses[0]
    return b"".join([bytes((len(packed),)) + packed for packed in addresses])


def split_addresses(block: bytes) -> tuple[bytes, ...]:
    """The addresses of a block. A block of several is longer than 4 bytes and never 16 long:
    its addresses take 5 or 17 bytes each, and no sum of those is 16."""
    if len(block) in (4, 16):
        return (block,)
    found, start = [], 0
    while start < len(block):
        end = start + 1 + block[start]
        found.append(block[start + 1 : end])
        start = end
    return tuple(found)


def block_of(record: bytes, length: int) -> bytes:
    """The addresses of a record as one block, as long as its head says."""
    return record[HEAD.size : HEAD.size + length]
