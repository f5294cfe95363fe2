"""Names, versions and forms of what istiod sends."""

import pytest

from ztunnel_trio.facts.network import ADDRESS_TYPE, AUTHORIZATION_TYPE
from ztunnel_trio.lab.resources import (
    Resource,
    Stored,
    aliases,
    gateway,
    node_of,
    policy,
    prefix,
    service,
    services_of,
    stored,
    text_match,
    workload,
)
from ztunnel_trio.pb.authorization_pb2 import Match
from ztunnel_trio.pb.workload_pb2 import Address

WEB = workload("web", addresses=["10.1.1.5", "fd88::5"], node="n1", services={"default/web.x": {80: 8080}})
SERVICE = service(
    "web.x", addresses=["10.96.0.10", "net2/fd88::10"], ports={80: 8080}, waypoint="default/wp.x"
)


@pytest.mark.parametrize(
    ("resource", "type_url", "name", "version_length"),
    [
        (WEB, ADDRESS_TYPE, "Kubernetes//Pod/default/web", 16),
        (SERVICE, ADDRESS_TYPE, "default/web.x", 16),
        (policy("p", namespace="shop"), AUTHORIZATION_TYPE, "shop/p", 0),
    ],
)
def test_names_and_versions_are_istiods(
    resource: Resource, type_url: str, name: str, version_length: int
) -> None:
    one = stored(resource)

    assert (one.type_url, one.name, len(one.version)) == (type_url, name, version_length)
    assert one == stored(resource)


def test_a_change_changes_the_version() -> None:
    assert stored(WEB).version != stored(workload("web")).version


def test_addresses_are_keys_for_asking() -> None:
    assert aliases(stored(WEB).value) == ["/10.1.1.5", "/fd88::5"]
    assert aliases(stored(SERVICE).value) == ["/10.96.0.10", "net2/fd88::10"]
    assert node_of(stored(WEB).value) == "n1"
    assert node_of(stored(SERVICE).value) == ""
    assert services_of(stored(WEB).value) == ["default/web.x"]


def test_a_workload_is_what_was_asked_for() -> None:
    made = Address.FromString(stored(WEB).value).workload

    assert list(made.addresses) == [bytes([10, 1, 1, 5]), bytes.fromhex("fd88" + "00" * 13 + "05")]
    assert made.services["default/web.x"].ports[0].target_port == 8080
    assert made.service_account == "web"


def test_gateways_are_named_by_address_or_host() -> None:
    assert gateway("10.1.1.9").address.address == bytes([10, 1, 1, 9])
    assert gateway("net2/10.1.1.9").address.network == "net2"
    assert (gateway("ns/wp.x", 15009).hostname.hostname, gateway("ns/wp.x", 15009).hbone_mtls_port) == (
        "wp.x",
        15009,
    )


def test_text_matches_are_read_as_istiod_reads_policies() -> None:
    assert text_match("*").HasField("presence")
    assert text_match("a*").prefix == "a"
    assert text_match("*a").suffix == "a"
    assert text_match("a").exact == "a"
    assert (prefix("10.1.0.0/16").address, prefix("10.1.0.0/16").length) == (bytes([10, 1, 0, 0]), 16)


def test_a_policy_has_one_rule_that_wants_every_match() -> None:
    made = policy("p", Match(destination_ports=[80]), Match(namespaces=[text_match("foo")]), deny=True)

    assert len(made.rules) == 1
    assert len(made.rules[0].clauses) == 2
    assert not policy("p").rules
    assert isinstance(stored(made), Stored)
