"""What HBONE takes from h2 and hpack: the book of SETTINGS and PING, and a cheap HPACK encoder."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import h2.config
import h2.connection
import h2.settings
import hpack

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADER_BLOCK_FACTOR: Final = 4  # an encoded header block may be this much larger than the list we take


@dataclass(frozen=True, slots=True, kw_only=True)
class HboneSettings:
    """What one end announces; defaults of the reference (ztunnel src/config.rs, src/proxy/h2)."""

    is_client: bool
    stream_window: int = 4_194_304
    connection_window: int = (
        16_777_216  # several streams' worth: one that does not read must not stop the others
    )
    frame_size: int = 1_048_576
    header_list_size: int = 65_536
    max_streams: int = 200
    max_resets_before_service: int = 20  # h2 (Rust): DEFAULT_REMOTE_RESET_STREAM_MAX
    max_stream_errors: int = 1024  # h2 (Rust): DEFAULT_LOCAL_RESET_COUNT_MAX
    max_control_backlog: int = 65_536


_NEVER_REPEATED = frozenset((b"traceparent", b"forwarded"))  # not worth a place in the table


class PlainEncoder(hpack.Encoder):
    """HPACK made cheap in Python: no Huffman, and the fields that repeat are looked up once.

    Huffman costs more than the bytes it saves on a link between proxies. tests/benchmarks/header_blocks.py
    has a request's encoding at a third of what hpack takes.
    """

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[tuple[bytes, bytes], bytes] = {}  # fields that are in the table, encoded
        self._newest: tuple[bytes, bytes] | None = None  # what the table was when that was so
        self._entries = 0

    def encode_fields(self, fields: Iterable[tuple[bytes, bytes]]) -> bytes:
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

    def _still_known(self) -> dict[tuple[bytes, bytes], bytes]:
        table = self.header_table.dynamic_entries
        newest = table[0] if table else None
        if newest is not self._newest or len(table) != self._entries:  # every insertion moves the indices
            self._known.clear()
            self._newest, self._entries = newest, len(table)
        return self._known


class PlainDecoder(hpack.Decoder):
    """HPACK made cheap for what `PlainEncoder` makes: indices, and literals nobody remembers.

    Such a block changes no table, so at the first thing of another kind the block is begun again by hpack.
    """

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[int, tuple[bytes, bytes]] = {}  # what the octet of an index stands for

    def decode_fields(self, block: bytes) -> list[tuple[bytes, bytes]]:
        """The fields of a block.

        Raises:
            hpack.HPACKError: as `hpack.Decoder.decode`.
        """
        known = self._known
        fields: list[tuple[bytes, bytes]] = []
        at, end, size = 0, len(block), 0
        while at < end:
            octet = block[at]
            if 0x80 < octet < 0xFF:
                found = known.get(octet) or self._look_up(octet)
                if found is None:
                    break
                field = found
                at += 1
            elif octet == 0x10 and at + 2 < end:  # a new name, not to be indexed (RFC 7541 6.2.3)
                start = at + 2
                middle = start + block[at + 1]
                if block[at + 1] >= 0x7F or middle >= end or block[middle] >= 0x7F:  # Huffman, or long
                    break
                at = middle + 1 + block[middle]
                if at > end:
                    break
                field = (block[start:middle], block[middle + 1 : at])
            else:
                break
            size += len(field[0]) + len(field[1]) + 32
            fields.append(field)
        if at < end or size > self.max_header_list_size:
            return self._decode_all(block)
        return fields

    def _decode_all(self, block: bytes) -> list[tuple[bytes, bytes]]:
        self._known.clear()  # the table may change
        return [(bytes(name), bytes(value)) for name, value in self.decode(block, raw=True)]

    def _look_up(self, octet: int) -> tuple[bytes, bytes] | None:
        try:
            name, value = self.header_table.get_by_index(octet & 0x7F)
        except hpack.InvalidTableIndexError:
            return None
        field = self._known[octet] = (bytes(name), bytes(value))
        return field


def never_indexed(name: bytes, value: bytes) -> bytes:
    """A literal field that no table remembers (RFC 7541 6.2.3)."""
    if len(name) < 127 and len(value) < 127:
        return b"\x10%c%b%c%b" % (len(name), name, len(value), value)
    sizes = (bytes(hpack.hpack.encode_integer(len(text), 7)) for text in (name, value))
    return b"".join((b"\x10", next(sizes), name, next(sizes), value))


class Book(h2.connection.H2Connection):
    """h2 without streams."""

    encoder: PlainEncoder
    decoder: PlainDecoder

    def __init__(self, config: h2.config.H2Configuration) -> None:
        super().__init__(config)
        self.encoder = PlainEncoder()
        self.decoder = PlainDecoder()


def make_book(settings: HboneSettings) -> Book:
    """An h2 connection past its own preface: ours names only the settings we want to name."""
    book = Book(
        h2.config.H2Configuration(
            client_side=settings.is_client,
            header_encoding=None,
            validate_inbound_headers=False,  # wire.connect_fields does, as a matter of the stream
            normalize_inbound_headers=False,
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
    )
    codes = h2.settings.SettingCodes
    book.local_settings = h2.settings.Settings(
        client=settings.is_client,
        initial_values={
            codes.ENABLE_PUSH: 0,
            codes.MAX_CONCURRENT_STREAMS: 2**31 - 1,
            codes.INITIAL_WINDOW_SIZE: settings.stream_window,
            codes.MAX_FRAME_SIZE: settings.frame_size,
            codes.MAX_HEADER_LIST_SIZE: HEADER_BLOCK_FACTOR * settings.header_list_size,
        },
    )
    book.max_inbound_frame_size = settings.frame_size
    book.decoder.max_header_list_size = HEADER_BLOCK_FACTOR * settings.header_list_size
    book.initiate_connection()
    book.clear_outbound_data_buffer()
    if not settings.is_client:
        book.receive_data(PREFACE)
    return book
