"""Which objects there are, and what those beside the DaemonSet say."""

import kubernetes_validate
import pytest
import yaml

from tests.chart.cases import CASES
from tests.chart.helm import CHART, Json, Values, kinds, one, render
from tests.chart.test_daemonset import COMMON_LABELS, VERSION_LABELS
from ztunnel_trio import __version__

OPENSHIFT: Json = "openshift"


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ({}, ["DaemonSet", "ServiceAccount"]),
        ({"resourceScope": "namespace"}, ["DaemonSet", "ServiceAccount"]),
        ({"resourceScope": "cluster"}, []),
        ({"platform": "gke"}, ["DaemonSet", "ResourceQuota", "ServiceAccount"]),
        ({"platform": "gke", "resourceScope": "namespace"}, ["DaemonSet", "ResourceQuota", "ServiceAccount"]),
        ({"platform": "gke", "resourceScope": "cluster"}, []),
        ({"platform": "gke", "resourceQuotas": {"enabled": False}}, ["DaemonSet", "ServiceAccount"]),
        ({"resourceQuotas": {"enabled": True}}, ["DaemonSet", "ResourceQuota", "ServiceAccount"]),
        (
            {"platform": "openshift"},
            ["ClusterRole", "ClusterRoleBinding", "DaemonSet", "ServiceAccount"],
        ),
        (
            {"global": {"platform": "openshift"}, "resourceScope": "namespace"},
            ["DaemonSet", "ServiceAccount"],
        ),
        ({"platform": "openshift", "resourceScope": "cluster"}, ["ClusterRole", "ClusterRoleBinding"]),
        (
            {"global": {"networkPolicy": {"enabled": True}}},
            ["DaemonSet", "NetworkPolicy", "ServiceAccount"],
        ),
    ],
)
def test_scope_platform_and_switches_choose_the_objects(values: Values, wanted: list[str]) -> None:
    assert kinds(render(values)) == wanted


@pytest.mark.parametrize("case", CASES)
def test_kubernetes_accepts_every_object(case: str) -> None:
    objects = render(CASES[case])

    assert objects
    for each in objects:
        kubernetes_validate.validate(each.body, "1.30", strict=True)


@pytest.mark.parametrize("case", CASES)
def test_every_object_has_the_common_labels(case: str) -> None:
    for each in render(CASES[case]):
        labels = each.at("metadata", "labels")
        assert isinstance(labels, dict)
        assert labels.items() >= COMMON_LABELS.items()
        assert set(labels) >= VERSION_LABELS


def test_the_account_is_named_as_istiod_trusts_it() -> None:
    found = one(render({"imagePullSecrets": ["a", "b"], "revision": "canary"}), "ServiceAccount")

    assert found.name == "ztunnel"
    assert found.at("imagePullSecrets") == [{"name": "a"}, {"name": "b"}]
    assert found.at("metadata", "annotations") == {"istio.io/rev": "canary"}


def test_openshift_lets_the_account_use_the_privileged_constraint() -> None:
    objects = render({"platform": "openshift", "ownerName": "operator"})

    role = one(objects, "ClusterRole")
    binding = one(objects, "ClusterRoleBinding")
    account: Json = {"kind": "ServiceAccount", "name": "ztunnel", "namespace": "istio-system"}
    assert role.at("rules") == [
        {
            "apiGroups": ["security.openshift.io"],
            "resources": ["securitycontextconstraints"],
            "resourceNames": ["privileged"],
            "verbs": ["use"],
        }
    ]
    assert binding.at("roleRef", "name") == role.name
    assert binding.at("subjects") == [account]
    assert role.at("metadata", "labels", "install.operator.istio.io/owning-resource") == "operator"
    assert role.at("metadata", "namespace") is None


def test_the_quota_is_for_critical_pods() -> None:
    found = one(render({"platform": "gke", "resourceQuotas": {"pods": 7000000}}), "ResourceQuota")

    assert found.at("spec", "hard") == {"pods": "7000000"}
    assert found.at("spec", "scopeSelector", "matchExpressions") == [
        {"operator": "In", "scopeName": "PriorityClass", "values": ["system-node-critical"]}
    ]


@pytest.mark.parametrize(("revision", "name"), [("", "ztunnel"), ("canary", "ztunnel-canary")])
def test_the_network_policy_lets_in_what_the_proxy_listens_on(revision: str, name: str) -> None:
    found = one(
        render({"global": {"networkPolicy": {"enabled": True}}, "revision": revision}), "NetworkPolicy"
    )

    assert found.name == name
    assert found.at("spec", "podSelector") == {"matchLabels": {"app": "ztunnel"}}
    tcp = (15021, 15020, 15000, 15008, 15001, 15006, 15053)
    ports = [*(("TCP", port) for port in tcp), ("UDP", 15053)]
    opened: Json = [{"protocol": protocol, "port": port} for protocol, port in ports]
    assert found.at("spec", "ingress") == [{"ports": opened}]
    assert found.at("spec", "egress") == [{}]
    assert found.at("metadata", "labels", "install.operator.istio.io/owning-resource") == "unknown"


def test_the_chart_is_of_this_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())

    assert chart["appVersion"] == chart["version"] == __version__
