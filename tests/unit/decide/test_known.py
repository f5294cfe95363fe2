"""What decisions have been told is added to, never changed."""

from ipaddress import IPv4Address

from ztunnel_trio.decide.known import Known


def test_telling_more_leaves_what_was_known_as_it_was() -> None:
    asked = Known().with_asked("ns/host")
    resolved = asked.with_host("uid", (IPv4Address("10.0.0.1"),)).with_host("gone", None)

    assert asked.asked == {"ns/host"}
    assert not asked.hosts
    assert resolved.asked == {"ns/host"}
    assert dict(resolved.hosts) == {"uid": (IPv4Address("10.0.0.1"),), "gone": None}
