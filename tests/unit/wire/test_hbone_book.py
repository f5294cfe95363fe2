import hpack
import pytest

from ztunnel_trio.wire.hbone_book import PlainEncoder, never_indexed


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
