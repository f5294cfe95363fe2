"""Properties of SPIFFE ids."""

from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st

from ztunnel_trio.errors import PeerBrokeProtocol
from ztunnel_trio.model.identity import SpiffeId

parts = st.text(st.characters(exclude_characters="/"), max_size=20)
near_identities = st.lists(st.sampled_from(["spiffe:", "", "ns", "sa", "td", "a b", "é"]), max_size=9)


# istio pkg/spiffe, ParseIdentity: "spiffe://<trust domain>/ns/<namespace>/sa/<service account>"
@given(parts, parts, parts)
def test_an_identity_is_read_as_printed(trust_domain: str, namespace: str, account: str) -> None:
    identity = SpiffeId(trust_domain, namespace, account)

    assert SpiffeId.parse(str(identity)) == identity


@given(st.text(max_size=60) | near_identities.map("/".join))
def test_text_is_an_identity_or_the_peers_fault(text: str) -> None:
    with suppress(PeerBrokeProtocol):
        assert str(SpiffeId.parse(text)) == text
