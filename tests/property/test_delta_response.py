"""The response splitter against protobuf itself, for any message in any pieces."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from ztunnel_trio.errors import PeerBrokeProtocol
from ztunnel_trio.pb import xds_pb2
from ztunnel_trio.wire.delta_response import DiscoveryResponse, Resource, ResponseSplitter, read_resources
from ztunnel_trio.wire.rejection import RejectedResource

names = st.text(max_size=20)
resources = st.builds(
    lambda name, version, aliases, value: xds_pb2.Resource(
        name=name, version=version, aliases=aliases, resource={"type_url": "t", "value": value}
    ),
    names,
    names,
    st.lists(names, max_size=3),
    st.binary(max_size=300),
)
responses = st.builds(
    lambda info, parts, type_url, nonce, removed: xds_pb2.DeltaDiscoveryResponse(
        system_version_info=info, resources=parts, type_url=type_url, nonce=nonce, removed_resources=removed
    ),
    names,
    st.lists(resources, max_size=8),
    names,
    names,
    st.lists(names, max_size=5),
)


def split(data: bytes, cuts: list[int]) -> DiscoveryResponse:
    splitter = ResponseSplitter(len(data))
    borders = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    for start, stop in itertools.pairwise(borders):
        splitter.feed(data[start:stop])
    return splitter.finish()


def taken(response: DiscoveryResponse) -> list[Resource | RejectedResource]:
    """Its resources."""
    found: list[Resource | RejectedResource] = []
    while response.resources:
        found += read_resources(response.resources.take())
    return found


def as_read(message: xds_pb2.Resource) -> Resource:
    return Resource(
        message.name,
        message.version,
        tuple(message.aliases),
        message.resource.value if message.HasField("resource") else None,
    )


@settings(max_examples=100)
@given(responses, st.lists(st.integers(min_value=0), max_size=10))
def test_every_response_is_read_as_protobuf_reads_it(
    message: xds_pb2.DeltaDiscoveryResponse, cuts: list[int]
) -> None:
    response = split(message.SerializeToString(), cuts)

    assert response.resources.count == len(message.resources)
    assert response.type_url == message.type_url
    assert response.nonce == message.nonce
    assert response.system_version_info == message.system_version_info
    assert response.removed == list(message.removed_resources)
    assert taken(response) == [as_read(one) for one in message.resources]


@settings(max_examples=200)
@given(st.binary(max_size=80), st.lists(st.integers(min_value=0), max_size=4))
def test_garbage_is_refused_or_read_but_never_anything_else(data: bytes, cuts: list[int]) -> None:
    try:
        read = taken(split(data, cuts))
    except PeerBrokeProtocol as error:
        assert str(error)
    else:
        assert len(read) <= len(data)


@settings(max_examples=100)
@given(responses, st.binary(max_size=30), st.lists(st.integers(min_value=0), max_size=4))
def test_cutting_never_changes_the_verdict(
    message: xds_pb2.DeltaDiscoveryResponse, tail: bytes, cuts: list[int]
) -> None:
    data = message.SerializeToString() + tail

    def verdict(where: list[int]) -> list[Resource | RejectedResource] | None:
        try:
            return taken(split(data, where))
        except PeerBrokeProtocol:
            return None

    assert verdict(cuts) == verdict([])
