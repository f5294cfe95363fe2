"""HPACK, beside hpack itself."""

import hpack
import pytest

from ztunnel_trio.wire.http2.compression import BoundedDecoder, PlainEncoder, decode_huffman, never_indexed
from ztunnel_trio.wire.http2.fields import list_size


def test_what_repeats_becomes_an_index_and_decodes_all_the_same() -> None:
    encoder, decoder = PlainEncoder(), hpack.Decoder()
    sizes = []
    for number in range(300):
        fields = [
            (b":method", b"CONNECT"),
            (b":authority", b"h%d:80" % (number % 120)),
            (b"baggage", b"k=v" * 20),
        ]
        for _ in range(3):
            block = encoder.encode_fields(fields)
            sizes.append(len(block))
            assert [(bytes(name), bytes(value)) for name, value in decoder.decode(block, raw=True)] == fields
    assert min(sizes) <= 4


def test_a_smaller_table_is_announced_and_kept_to() -> None:
    encoder, decoder = PlainEncoder(), hpack.Decoder()
    decoder.decode(encoder.encode_fields([(b"a", b"b"), (b"c", b"d")]), raw=True)
    encoder.header_table_size = 40
    for _ in range(3):
        block = encoder.encode_fields([(b"a", b"b"), (b"c", b"d")])
        assert [tuple(field) for field in decoder.decode(block, raw=True)] == [(b"a", b"b"), (b"c", b"d")]


@pytest.mark.parametrize("length", [0, 1, 126, 127, 128, 400, 70_000])
def test_literals_nobody_remembers_may_have_any_length(length: int) -> None:
    decoder = hpack.Decoder(max_header_list_size=1 << 20)
    field = (b"forwarded", b"f" * length)
    [decoded] = decoder.decode(never_indexed(*field), raw=True)
    assert tuple(decoded) == field
    assert not decoder.header_table.dynamic_entries


def test_both_decoders_read_the_same() -> None:
    encoders = [PlainEncoder(), hpack.Encoder()]
    for encoder in encoders:
        ours, theirs = BoundedDecoder(65_536), hpack.Decoder()
        for number in range(300):
            fields = [
                (b":method", b"CONNECT"),
                (b":authority", b"h%d:80" % (number % 70)),
                (b"baggage", b"k=v" * (number % 60)),
                (b"forwarded", b"f" * (number % 200)),
                (b"traceparent", b"%d" % number),
            ]
            block = (
                encoder.encode_fields(fields) if isinstance(encoder, PlainEncoder) else encoder.encode(fields)
            )
            assert ours.decode(block) == [tuple(field) for field in theirs.decode(block, raw=True)] == fields


@pytest.mark.parametrize("block", [b"\x80", b"\xfe", b"\x10", b"\x10\x03a", b"\x82\xff\x80\x80\x80"])
def test_a_block_that_is_none_is_refused(block: bytes) -> None:
    decoder = BoundedDecoder(65_536)
    decoder.decode(b"\x82")
    with pytest.raises(hpack.HPACKError):
        decoder.decode(block)


def test_the_size_of_a_list_is_limited() -> None:
    encoder, decoder = PlainEncoder(), BoundedDecoder(100)
    block = encoder.encode_fields([(b"forwarded", b"f" * 30), (b"traceparent", b"t" * 30)])
    with pytest.raises(hpack.OversizedHeaderListError):
        decoder.decode(block)


@pytest.mark.parametrize("text", [b"", b"a", b"www.example.com", bytes(range(256)), b"~" * 1000])
def test_huffman_is_read_as_hpack_reads_it(text: bytes) -> None:
    [field] = BoundedDecoder(65_536).decode(hpack.Encoder().encode([(b"a", text)], huffman=True))

    assert field == (b"a", text)


@pytest.mark.parametrize("coded", [b"\xff\xff\xff\xff", b"\xff", b"\x00"])
def test_huffman_that_is_none_is_refused(coded: bytes) -> None:
    with pytest.raises(hpack.HPACKDecodingError):
        decode_huffman(coded)


@pytest.mark.parametrize("block", [b"\x3f\xe2\x1f", b"\x82\x20"], ids=["larger than ours", "behind a field"])
def test_the_table_changes_only_as_far_and_where_it_may(block: bytes) -> None:
    with pytest.raises(hpack.HPACKError):
        BoundedDecoder(65_536).decode(block)


def test_a_table_may_shrink_and_grow_again() -> None:
    encoder, decoder = hpack.Encoder(), BoundedDecoder(65_536)
    for size in (4096, 0, 50, 4096):
        encoder.header_table_size = size
        for _ in range(3):
            fields = [(b"a", b"b"), (b"c", b"d" * 20)]
            assert decoder.decode(encoder.encode(fields)) == fields


def test_the_size_of_a_list_is_told() -> None:
    decoder = BoundedDecoder(65_536)
    fields = decoder.decode(hpack.Encoder().encode([(b"ab", b"c"), (b"", b"")]))

    assert decoder.size == list_size(fields) == 67
