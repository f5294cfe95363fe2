"""What a request's header block costs to encode: hpack as it comes, without Huffman, and ours.

python -m tests.benchmarks.header_blocks
"""

import sys
import time
from collections.abc import Callable
from functools import partial

import hpack

from ztunnel_trio.wire.hbone_book import PlainEncoder

BAGGAGE = (
    b"k8s.cluster.name=Kubernetes,k8s.namespace.name=default,k8s.deployment.name=client,service.name=client"
)
ROUNDS = 20_000


def fields(number: int) -> list[hpack.HeaderTuple]:
    return [
        hpack.HeaderTuple(b":method", b"CONNECT"),
        hpack.HeaderTuple(b":authority", b"10.0.0.2:8080"),
        hpack.HeaderTuple(b"baggage", BAGGAGE),
        hpack.NeverIndexedHeaderTuple(b"forwarded", b'for="10.0.0.1:%d"' % (number % 60_000)),
        hpack.NeverIndexedHeaderTuple(b"traceparent", b"00-%032x-%016x-00" % (number, number)),
    ]


def measure(name: str, encode: Callable[[list[hpack.HeaderTuple]], bytes]) -> None:
    blocks = [fields(number) for number in range(ROUNDS)]
    began = time.perf_counter()
    size = 0
    for block in blocks:
        size += len(encode(block))
    each = (time.perf_counter() - began) / ROUNDS * 1e6
    sys.stdout.write(f"{name}: {each:.1f} us, {size / ROUNDS:.0f} bytes\n")


if __name__ == "__main__":
    measure("hpack", hpack.Encoder().encode)
    measure("hpack without Huffman", partial(hpack.Encoder().encode, huffman=False))
    measure("ours", PlainEncoder().encode_fields)
