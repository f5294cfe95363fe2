"""What a NACK says of the resources that were not taken."""

from ztunnel_trio.wire.rejection import RejectedResource, Rejections


def test_a_rejection_names_its_resource_and_the_fields_are_told_apart() -> None:
    rejections = Rejections()
    for name in ("ns/a", "ns/b"):
        rejections.add(RejectedResource(name, "waypoint.address", "bad"))
    rejections.add(RejectedResource("ns/c", "", "worse"))

    assert rejections.text == "ns/a: bad; ns/b: bad; ns/c: worse"
    assert rejections.fields == "waypoint.address"


def test_without_rejections_there_is_no_text() -> None:
    assert Rejections().text is None


def test_rejections_are_told_up_to_a_thousand() -> None:
    rejections = Rejections()
    for number in range(1005):
        rejections.add(RejectedResource(f"n{number}", "", "bad", is_undecodable=number % 2 == 0))

    assert rejections.text is not None
    assert rejections.text.startswith("n1: bad; n3: bad")
    assert rejections.text.endswith("; n998: bad; and 5 more")
