"""What a request's header block costs to encode: hpack as it comes, without Huffman, and ours.

python -m tests.benchmarks.header_blocks
"""

import argparse
from collections.abc import Callable
from functools import partial

import hpack

from tests.benchmarks import yardstick
from ztunnel_trio.wire.http2.compression import PlainEncoder

BAGGAGE = (
    b"k8s.cluster.name=Kubernetes,k8s.namespace.name=default,k8s.deployment.name=client,service.name=client"
)
BLOCKS = 20_000


def fields(number: int) -> list[hpack.HeaderTuple]:
    return [
        hpack.HeaderTuple(b":method", b"CONNECT"),
        hpack.HeaderTuple(b":authority", b"10.0.0.2:8080"),
        hpack.HeaderTuple(b"baggage", BAGGAGE),
        hpack.NeverIndexedHeaderTuple(b"forwarded", b'for="10.0.0.1:%d"' % (number % 60_000)),
        hpack.NeverIndexedHeaderTuple(b"traceparent", b"00-%032x-%016x-00" % (number, number)),
    ]


def measure_one(name: str, encode: Callable[[list[hpack.HeaderTuple]], bytes]) -> yardstick.Figures:
    blocks = [fields(number) for number in range(BLOCKS)]
    size = 0
    with yardstick.stopwatch() as took:
        for block in blocks:
            size += len(encode(block))
    each = 1e6 / BLOCKS
    return {
        f"{name}: us": took.wall * each,
        f"{name}: CPU us": took.cpu * each,
        f"{name}: bytes": size / BLOCKS,
    }


def measure(_chosen: argparse.Namespace) -> yardstick.Figures:
    return {
        **measure_one("hpack", hpack.Encoder().encode),
        **measure_one("hpack without Huffman", partial(hpack.Encoder().encode, huffman=False)),
        **measure_one("ours", PlainEncoder().encode_fields),
    }


if __name__ == "__main__":
    yardstick.run(yardstick.options(__doc__), measure)
