"""A refused peer reads why, with a foreign HTTP/2 implementation at its end."""

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated

from ztunnel_trio.model.ending import OtherTrustDomain, PeerUnexpected
from ztunnel_trio.model.identity import SpiffeId
from ztunnel_trio.observe.words import ending_text
from ztunnel_trio.proxy import farewell

FOREIGN = SpiffeId("else.where", "ns", "client")


@pytest.mark.parametrize("is_client", [True, False])
def test_a_refused_peer_reads_the_reason(is_client: bool) -> None:
    peer = H2Connection(H2Configuration(client_side=is_client))
    peer.initiate_connection()
    ending = OtherTrustDomain("cluster.local", (FOREIGN,)) if is_client else PeerUnexpected((), (FOREIGN,))

    said = farewell.to_client(ending) if is_client else farewell.to_server(ending)
    events = peer.receive_data(said)

    (end,) = [event for event in events if isinstance(event, ConnectionTerminated)]
    assert end.error_code == 12
    assert end.additional_data == ending_text(ending).encode()


def test_a_peer_with_many_names_makes_no_long_frame() -> None:
    many = tuple(SpiffeId("else.where", "ns", f"client-{n}") for n in range(1000))

    assert len(farewell.to_client(OtherTrustDomain("cluster.local", many))) < 1100
