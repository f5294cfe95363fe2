"""A mesh from a file or a setting: loading, following the file, the static part of the dump."""

import itertools
import logging
import os
import random
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

import pytest
import trio

from tests.fakes.cancellation import cancelled_everywhere_now
from tests.fakes.trio_test import trio_test
from ztunnel_trio.control.local_mesh import LocalMesh, LocalSource, static_document
from ztunnel_trio.decide.balance import find_upstream
from ztunnel_trio.errors import ConfigError
from ztunnel_trio.live_mesh import LiveMesh
from ztunnel_trio.mesh.document import Json
from ztunnel_trio.mesh.entries import NO_ENDPOINTS, ServiceEntry
from ztunnel_trio.mesh.mesh import Batch, Mesh
from ztunnel_trio.model.address import NamespacedHostname, NetworkAddress
from ztunnel_trio.model.service import Service

LOCALHOST = """
workloads:
  - name: local-hbone
    namespace: default
    trustDomain: cluster.local
    serviceAccount: default
    uid: cluster1//v1/Pod/default/local-hbone
    workloadIps: ["127.0.0.1"]
    protocol: HBONE
    node: local
    services:
      default/example.com: {80: 8080}
      default/example2.com: {80: 8080}
  - name: local-tcp
    namespace: default
    trustDomain: cluster.local
    serviceAccount: local
    uid: cluster1//v1/Pod/default/local-tcp
    workloadIps: ["127.0.0.2"]
    protocol: TCP
    services:
      default/example.com: {80: 8080}
      default/example2.com: {80: 8080}
services:
  - name: local-vip
    namespace: default
    hostname: example.com
    vips: ["/127.10.0.1"]
    ports: {80: 8080}
    subjectAltNames: ["spiffe://cluster.local/ns/default/sa/local"]
  - name: remote-vip
    namespace: default
    hostname: example2.com
    vips: ["remote/127.10.0.2"]
    ports: {80: 8080}
"""
ONE = "workloads: [{{uid: {0}, name: {0}, namespace: n, workloadIps: [], services: {{n/svc: {{80: 80}}}}}}]"


def live_mesh() -> LiveMesh:
    return LiveMesh(Mesh())


def uids(live: LiveMesh) -> set[str]:
    return set(live.mesh.uids())


def test_local_client(caplog: pytest.LogCaptureFixture) -> None:
    live = live_mesh()
    with caplog.at_level(logging.INFO):
        LocalMesh(live, LocalSource(text=LOCALHOST)).start()

    def at(ip: str, network: str = "") -> NetworkAddress:
        return NetworkAddress(network, ip_address(ip))

    local = live.mesh.workload_at(at("127.0.0.1"))
    assert local is not None
    assert local.service_account == "default"
    for address in (at("127.10.0.1"), at("127.10.0.2", "remote")):
        chosen = find_upstream(address, 80, local, live.mesh, random.Random(0), waypoint=False)
        assert chosen is not None
        assert chosen.port == 8080
    found = live.mesh.service_at(at("127.10.0.1"), None)
    assert found is not None
    assert found.subject_alt_names == ("spiffe://cluster.local/ns/default/sa/local",)
    assert caplog.messages == ["local config initialized"]
    assert list(live.mesh.without_service()) == []


def test_errors_name_the_file_the_place_and_the_value(tmp_path: Path) -> None:
    path = tmp_path / "mesh.yaml"
    path.write_text("workloads: [{namespace: 5}]")
    missing = tmp_path / "missing.yaml"

    for source, words in (
        (LocalSource(path=path), f"{path}: workloads[0]"),
        (LocalSource(path=missing), f"{missing}: cannot be read: "),
        (LocalSource(text="policies: 7"), "LOCAL_XDS: policies: Expected `array`, got `int`, got 7"),
        (LocalSource(), "LOCAL_XDS: the document is empty"),
    ):
        with pytest.raises(ConfigError) as caught:
            LocalMesh(live_mesh(), source).start()
        assert str(caught.value).startswith(words)


def test_a_file_that_is_no_text_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "mesh.yaml"
    path.write_bytes(b"\xff\xfe")

    with pytest.raises(ConfigError, match="cannot be read"):
        LocalSource(path=path).load()


def write(path: Path, text: str, second: int) -> None:
    """Replace a file by one of another time, as editors and ConfigMaps do."""
    new = path.with_suffix(".new")
    new.write_text(text)
    os.utime(new, (second, second))
    new.rename(path)


async def until(condition: Callable[[], bool]) -> None:
    """Let the clock jump on until it holds; it does not wait for the thread that reads the file."""
    for _ in range(100_000):
        if condition():
            return
        await trio.sleep(1)
    raise AssertionError("it never came true")


@trio_test(autojump=True)
async def test_a_changed_file_replaces_what_it_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "mesh.yaml"
    write(path, ONE.format("a"), 1)
    live = live_mesh()
    live.apply(Batch(addresses=[ServiceEntry(Service(namespace="n", hostname="svc"))]))
    local = LocalMesh(live, LocalSource(path=path))
    local.start()
    assert uids(live) == {"a"}

    async with trio.open_nursery() as nursery:
        nursery.start_soon(local.run)
        await trio.sleep(3.5)
        write(path, ONE.format("b"), 2)
        await trio.sleep(1)
        assert uids(live) == {"a"}  # it may still be written to
        await until(lambda: uids(live) == {"b"})
        assert set(live.mesh.endpoints(NamespacedHostname("n", "svc"))) == {"b"}

        write(path, "workloads: [{uid: 5}]", 3)
        await until(lambda: len(caplog.messages) == 1)
        path.unlink()
        await until(lambda: len(caplog.messages) == 2)
        await trio.sleep(10)
        assert uids(live) == {"b"}
        assert len(caplog.messages) == 2
        assert caplog.messages[0].startswith(f"{path}: workloads[0]")
        assert caplog.messages[0].endswith("; the mesh stays as it was")
        assert "cannot be read" in caplog.messages[1]

        write(path, "{}", 4)
        await until(lambda: uids(live) == set())
        nursery.cancel_scope.cancel()


def test_a_change_is_one_step() -> None:
    live = live_mesh()
    seen: list[set[str]] = []
    live.on_workloads.append(lambda _: seen.append(uids(live)))
    local = LocalMesh(live, LocalSource(text=ONE.format("a")))
    local.start()
    local.source = LocalSource(text=ONE.format("b"))
    local.start()

    assert seen == [{"a"}, {"b"}]


SERVICE = "services: [{name: svc, namespace: n, hostname: svc, vips: [], ports: {80: 80}, endpoints: "
POLICY = "policies: [{name: p, namespace: n, scope: Global, action: Deny, dryRun: false, rules: []}]"


def test_endpoints_and_policies_that_vanish_from_the_file_vanish() -> None:
    live = live_mesh()
    local = LocalMesh(live, LocalSource())
    key = NamespacedHostname("n", "svc")
    given = "{x: {workloadUid: x, port: {80: 81}, status: Healthy}}"
    for text, endpoints, policies in (
        (f"{SERVICE}{given}}}]\n{ONE.format('a')}\n{POLICY}", {"x", "a"}, 1),
        (f"{SERVICE}{{}}}}]\n{ONE.format('a')}\n{POLICY}", {"a"}, 1),
        (ONE.format("a"), set(), 0),
        ("{}", set(), 0),
    ):
        local.source = LocalSource(text=text)
        local.start()
        assert set(live.mesh.endpoints(key)) == endpoints
        assert len(live.mesh.policy_keys()) == policies
    assert live.mesh.endpoints(key) is NO_ENDPOINTS


@trio_test(autojump=True)
async def test_text_in_a_setting_is_not_followed() -> None:
    local = LocalMesh(live_mesh(), LocalSource(text="{}"))
    local.start()

    with trio.move_on_after(1000) as scope:
        await local.run()

    assert scope.cancelled_caught


def test_the_static_part_of_the_dump(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    empty: dict[str, Json] = {"policies": [], "services": [], "workloads": []}

    document = static_document(LocalSource(text=f"{ONE.format('a')}\n{POLICY}"))
    workloads, policies = document["workloads"], document["policies"]
    assert isinstance(workloads, list)
    assert isinstance(policies, list)
    assert workloads[0]["services"] == {"n/svc": {"80": 80}}
    assert len(policies) == 1
    assert static_document(None) == empty
    assert caplog.messages == []
    assert static_document(LocalSource(path=tmp_path / "none")) == empty
    assert len(caplog.messages) == 1


def test_following_can_be_cancelled_at_any_step(tmp_path: Path) -> None:
    path = tmp_path / "mesh.yaml"
    write(path, ONE.format("a"), 1)
    moments = itertools.count(2)

    async def scenario() -> None:
        live = live_mesh()
        local = LocalMesh(live, LocalSource(path=path))
        local.start()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(local.run)
            await trio.sleep(1.5)
            moment = next(moments)
            write(path, ONE.format(f"w{moment}"), moment)
            await live.workloads_changed.newer_than(live.workloads_changed.version)
            nursery.cancel_scope.cancel()

    assert cancelled_everywhere_now(scenario) > 3
