"""SPIFFE ids are read as istio's `ParseIdentity` reads them."""

import pytest

from ztunnel_trio.errors import PeerBrokeProtocol
from ztunnel_trio.model.identity import SpiffeId


@pytest.mark.parametrize(
    ("text", "identity"),
    [
        (
            "spiffe://cluster.local/ns/namespace/sa/service-account",
            SpiffeId("cluster.local", "namespace", "service-account"),
        ),
        ("spiffe://td/ns/ns/sa/sa", SpiffeId("td", "ns", "sa")),
        (
            "spiffe://td.with.dots/ns/ns.with.dots/sa/sa.with.dots",
            SpiffeId("td.with.dots", "ns.with.dots", "sa.with.dots"),
        ),
        ("spiffe://td/ns//sa/", SpiffeId("td", "", "")),
        ("spiffe:///ns/a/sa/b", SpiffeId("", "a", "b")),
    ],
)
def test_an_identity_is_read_and_printed(text: str, identity: SpiffeId) -> None:
    assert SpiffeId.parse(text) == identity
    assert str(identity) == text
    assert identity.principal == text.removeprefix("spiffe://")


@pytest.mark.parametrize(
    "text",
    [
        "td/ns/ns/sa/sa",
        "spiffe://td/ns/ns/sa",
        "spiffe://td/ns/ns/sa/sa/",
        "spiffe://td/ns/ns/foobar/sa/",
        "spiffe://td/ns/ns/foobar/sa",
        "spiffe://td/foobar/ns/sa/sa",
        "SPIFFE://td/ns/ns/sa/sa",
        "spiffe://",
        "",
    ],
)
def test_what_is_no_identity_is_refused_with_its_text(text: str) -> None:
    with pytest.raises(PeerBrokeProtocol, match=f"^invalid spiffe identity: {text}$"):
        SpiffeId.parse(text)


def test_identities_are_ordered_by_their_parts_and_case_counts() -> None:
    assert SpiffeId("a", "z", "z") < SpiffeId("b", "a", "a") < SpiffeId("b", "a", "b")
    assert SpiffeId("a", "b", "c") != SpiffeId("A", "b", "c")
