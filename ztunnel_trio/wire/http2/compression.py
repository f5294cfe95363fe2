"""HPACK (RFC 7541) made cheap in Python, and bounded: on top of hpack's tables, with hpack's errors.

*Encoding.* No Huffman: it costs more than the bytes it saves on a link between proxies. Fields that repeat
are looked up once. tests/benchmarks/header_blocks.py has a request's encoding at a third of what hpack takes.

*Decoding.* One walk over the block, which stops as soon as the list is longer than the limit (a block is
small beside what it stands for: CVE-2026-47774). Five to ten times as fast as hpack's, so that the largest
block a peer may send holds nobody up.
"""

from collections.abc import Iterable
from typing import Final

import hpack
import hpack.exceptions
import hpack.hpack
import hpack.huffman_table as huffman
import hpack.table

Field = tuple[bytes, bytes]

_NEVER_REPEATED: Final = frozenset((b"traceparent", b"forwarded"))  # not worth a place in the table
_MOST_OCTETS: Final = 4  # of an integer's continuation (RFC 7541 5.1): 2^28 is more than any block has
FIELD_OVERHEAD: Final = 32  # RFC 9113 6.5.2
TABLE_BYTES: Final = 4096  # what either side remembers: the default, which our SETTINGS do not change


class PlainEncoder(hpack.Encoder):
    """See the module's text."""

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[Field, bytes] = {}  # fields that are in the table, encoded
        self._newest: Field | None = None  # what the table was when that was so
        self._entries = 0

    def encode_fields(self, fields: Iterable[Field]) -> bytes:
        """A header block."""
        # Announces a change of the table's size (RFC 7541 4.2), and nothing else.
        pieces = [super().encode((), False)] if self.header_table.resized else []
        known = self._still_known()
        for field in fields:
            if field[0] in _NEVER_REPEATED:
                pieces.append(never_indexed(*field))
                continue
            encoded = known.get(field)
            if encoded is None:
                encoded = super().add(field, False, False)
                known = self._still_known()
                if len(encoded) <= 2:  # an index alone (RFC 7541 6.1): the table was left as it was
                    known[field] = encoded
            pieces.append(encoded)
        return b"".join(pieces)

    def _still_known(self) -> dict[Field, bytes]:
        table = self.header_table.dynamic_entries
        newest = table[0] if table else None
        if newest is not self._newest or len(table) != self._entries:  # every insertion moves the indices
            self._known.clear()
            self._newest, self._entries = newest, len(table)
        return self._known


def never_indexed(name: bytes, value: bytes) -> bytes:
    """A literal field that no table remembers (RFC 7541 6.2.3)."""
    if len(name) < 127 and len(value) < 127:
        return b"\x10%c%b%c%b" % (len(name), name, len(value), value)
    sizes = (bytes(hpack.hpack.encode_integer(len(text), 7)) for text in (name, value))
    return b"".join((b"\x10", next(sizes), name, next(sizes), value))


class BoundedDecoder:
    """Decodes header blocks of one connection, in order. `size` is that of the last list (RFC 9113 6.5.2)."""

    __slots__ = ("_known", "_limit", "_table", "size")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._table = hpack.table.HeaderTable()
        self._known: dict[int, Field] = {}  # what the octet of an index stands for, while the table stays
        self.size = 0

    def decode(self, block: bytes) -> list[Field]:
        """The fields of a block.

        Raises:
            hpack.HPACKError: it is none.
            hpack.OversizedHeaderListError: the list is longer than the limit. The table is behind, so no
                further block can be decoded.
        """
        known, fields = self._known, list[Field]()
        at, end, size, limit = 0, len(block), 0, self._limit
        try:
            while at < end:
                octet = block[at]
                if octet >= 0x80:  # an index (RFC 7541 6.1)
                    field = known.get(octet)
                    if field is not None:
                        at += 1
                    else:
                        field, at = self._indexed(block, at)
                elif (  # what `never_indexed` makes, in one go
                    octet == 0x10
                    and (length := block[at + 1]) < 0x7F
                    and (more := block[(middle := at + 2 + length)]) < 0x7F
                    and (after := middle + 1 + more) <= end
                ):
                    field = (block[at + 2 : middle], block[middle + 1 : after])
                    at = after
                elif octet & 0xE0 == 0x20:
                    if fields:  # RFC 7541 4.2
                        raise hpack.HPACKDecodingError("a change of the table's size behind a field")
                    at = self._resize(block, at)
                    continue
                else:
                    field, at = self._literal(block, at)
                size += len(field[0]) + len(field[1]) + FIELD_OVERHEAD
                if size > limit:
                    raise hpack.OversizedHeaderListError(f"a header list of more than {limit} bytes")
                fields.append(field)
        except IndexError as error:  # the block ended in the middle of something
            raise hpack.HPACKDecodingError("a header block that ends too early") from error
        self.size = size
        return fields

    def _indexed(self, block: bytes, at: int) -> tuple[Field, int]:
        octet = block[at]
        index, at = _integer(block, at, 0x7F)
        name, value = self._table.get_by_index(index)
        field = bytes(name), bytes(value)
        if octet != 0xFF:
            self._known[octet] = field
        return field, at

    def _literal(self, block: bytes, at: int) -> tuple[Field, int]:
        """A literal: to be remembered (RFC 7541 6.2.1), or not (6.2.2, 6.2.3)."""
        octet = block[at]
        mask = 0x3F if octet >= 0x40 else 0x0F
        index = octet & mask
        at += 1
        if index == mask:
            index, at = _integer(block, at - 1, mask)
        if index:
            name = bytes(self._table.get_by_index(index)[0])
        else:
            name, at = _string(block, at)
        value, at = _string(block, at)
        if octet >= 0x40:
            self._table.add(name, value)
            self._known.clear()
        return (name, value), at

    def _resize(self, block: bytes, at: int) -> int:
        size, at = _integer(block, at, 0x1F)
        if size > TABLE_BYTES:
            raise hpack.InvalidTableSizeError("a table larger than we offered")
        self._table.maxsize = size
        self._known.clear()
        return at


def _integer(block: bytes, at: int, mask: int) -> tuple[int, int]:
    """An integer (RFC 7541 5.1) and where it ends."""
    number = block[at] & mask
    at += 1
    if number < mask:
        return number, at
    for shift in range(0, 7 * _MOST_OCTETS, 7):
        octet = block[at]
        at += 1
        number += (octet & 0x7F) << shift
        if octet < 0x80:
            return number, at
    raise hpack.HPACKDecodingError("an integer without end")


def _string(block: bytes, at: int) -> tuple[bytes, int]:
    """A string (RFC 7541 5.2) and where it ends."""
    octet = length = block[at]
    at += 1
    if octet >= 0x7F:
        length, at = _integer(block, at - 1, 0x7F)
    end = at + length
    if end > len(block):
        raise hpack.HPACKDecodingError("a string longer than its block")
    return (block[at:end] if octet < 0x80 else decode_huffman(block[at:end])), end


# -- Huffman (RFC 7541 5.2, Appendix B)


class _Node:
    """A node of hpack's tree, which walks half an octet at a time, with its steps of a whole octet."""

    __slots__ = ("is_end", "number", "steps")

    def __init__(self, number: int, *, is_end: bool) -> None:
        self.number = number
        self.is_end = is_end  # a string may end here: what led here from the last symbol is padding
        self.steps: list[tuple[bytes, _Node] | None] = [None] * 256  # found as they are needed


_NODES: Final = {0: _Node(0, is_end=True)}


def decode_huffman(coded: bytes) -> bytes:
    """Read a string in the code of HPACK.

    Raises:
        hpack.HPACKDecodingError: it holds the end-of-string symbol, or ends in a wrong padding.
    """
    pieces: list[bytes] = []
    add = pieces.append
    node = _NODES[0]
    for octet in coded:
        step = node.steps[octet]
        if step is None:
            step = node.steps[octet] = _step(node.number, octet)
        text, node = step
        add(text)
    if not node.is_end:
        raise hpack.HPACKDecodingError("a Huffman string with a wrong end")
    return b"".join(pieces)


def _step(number: int, octet: int) -> tuple[bytes, _Node]:
    """What one octet adds at one node, and the node after it: two steps of hpack's table."""
    text, flags = b"", 0
    for half in (octet >> 4, octet & 0x0F):
        number, flags, symbol = huffman.HUFFMAN_TABLE[(number << 4) + half]
        if flags & huffman.HUFFMAN_FAIL:
            raise hpack.HPACKDecodingError("a Huffman string with an end in it")
        if flags & huffman.HUFFMAN_EMIT_SYMBOL:
            text += bytes((symbol,))
    is_end = bool(flags & huffman.HUFFMAN_COMPLETE)
    return text, _NODES.setdefault(number, _Node(number, is_end=is_end))
