"""What would be applied: valid to Kubernetes, and along the chain that the checks go."""

from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from tests.chart.helm import Json, Manifest
from tests.kind.checks import HOPS, MESH_ONLY
from tests.kind.run import IMAGE, MIX

MANIFESTS = Path(__file__).parent / "manifests"
PRINCIPAL = "cluster.local/ns/default/sa/"


def manifests(name: str) -> list[Manifest]:
    return [Manifest(body) for body in yaml.safe_load_all((MANIFESTS / f"{name}.yaml").read_text())]


APPLICATIONS = manifests("apps")


@pytest.mark.parametrize("manifest", APPLICATIONS, ids=lambda manifest: f"{manifest.kind}-{manifest.name}")
def test_kubernetes_accepts_the_applications(manifest: Manifest) -> None:
    kubernetes_validate.validate(manifest.body, "1.30", strict=True)


def test_every_application_has_an_account_of_its_own_and_our_image() -> None:
    accounts = {each.name for each in APPLICATIONS if each.kind == "ServiceAccount"}
    deployments = [each for each in APPLICATIONS if each.kind == "Deployment"]

    assert {each.name for each in deployments} == accounts
    for each in deployments:
        pod = ("spec", "template", "spec")
        assert each.at(*pod, "serviceAccountName") == each.name
        assert each.at(*pod, "containers", 0, "image") == IMAGE
        assert each.at("spec", "template", "metadata", "labels") == each.at("spec", "selector", "matchLabels")


def test_each_hop_is_from_one_node_to_the_other() -> None:
    nodes = {
        each.name: each.at("spec", "template", "spec", "nodeSelector", "workshop")
        for each in APPLICATIONS
        if each.kind == "Deployment"
    }

    assert all(nodes[caller] != nodes[callee] for caller, callee in HOPS)
    labels = [
        node.get("labels", {}) for node in yaml.safe_load((MANIFESTS / "cluster.yaml").read_text())["nodes"]
    ]
    assert {label["workshop"] for label in labels if label} == set(nodes.values())


def test_policies_allow_the_chain_and_nothing_else() -> None:
    found = {
        str(each.at("spec", "selector", "matchLabels", "app")): each.at(
            "spec", "rules", 0, "from", 0, "source", "principals"
        )
        for each in manifests("policies")
    }

    wanted: dict[str, Json] = {callee: [f"{PRINCIPAL}{caller}"] for caller, callee in HOPS}
    assert found == wanted
    (nothing,) = manifests("deny-all")
    assert (nothing.kind, nothing.at("spec")) == ("AuthorizationPolicy", {})


def test_the_name_of_the_mesh_alone_has_no_address_of_its_own() -> None:
    (entry,) = manifests("mesh-only-name")

    assert entry.at("spec", "hosts") == [MESH_ONLY]
    assert entry.at("spec", "addresses") is None


def test_the_stock_proxy_keeps_off_the_nodes_that_ours_is_put_on() -> None:
    (values,) = manifests("keep-off.values")

    terms = values.at(
        "affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms"
    )
    assert terms == [{"matchExpressions": [{"key": MIX, "operator": "NotIn", "values": ["trio"]}]}]
