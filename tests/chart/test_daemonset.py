"""The DaemonSet, field by field, as the stock chart's pods are (image and version aside)."""

import pytest

from tests.chart.helm import Json, Manifest, Values, one, render

POD = ("spec", "template", "spec")
CONTAINER = (*POD, "containers", 0)


def daemonset(values: Values | None = None) -> Manifest:
    return one(render(values), "DaemonSet")


def env(values: Values | None = None) -> dict[str, Json]:
    """Plain values as text, others as what they are taken from."""
    entries = daemonset(values).named(*CONTAINER, "env")
    return {
        name: entry["value"] if isinstance(entry, dict) and "value" in entry else entry
        for name, entry in entries.items()
    }


def field(path: str) -> Json:
    return {"valueFrom": {"fieldRef": {"fieldPath": path}}}


def cpu(resource: str) -> Json:
    return {"valueFrom": {"resourceFieldRef": {"resource": resource, "divisor": "1"}}}


DEFAULT_ENV: dict[str, Json] = {
    "CA_ADDRESS": "istiod.istio-system.svc:15012",
    "XDS_ADDRESS": "istiod.istio-system.svc:15012",
    "RUST_LOG": "info",
    "RUST_BACKTRACE": "1",
    "ISTIO_META_CLUSTER_ID": "Kubernetes",
    "INPOD_ENABLED": "true",
    "TERMINATION_GRACE_PERIOD_SECONDS": "30",
    "POD_NAME": field("metadata.name"),
    "POD_NAMESPACE": field("metadata.namespace"),
    "NODE_NAME": field("spec.nodeName"),
    "INSTANCE_IP": field("status.podIP"),
    "SERVICE_ACCOUNT": field("spec.serviceAccountName"),
    "ZTUNNEL_CPU_LIMIT": cpu("limits.cpu"),
    "ZTUNNEL_RESOURCE_CPU_REQUEST": cpu("requests.cpu"),
}
COMMON_LABELS: dict[str, Json] = {
    "app.kubernetes.io/name": "ztunnel",
    "app.kubernetes.io/managed-by": "Helm",
    "app.kubernetes.io/instance": "node",
    "app.kubernetes.io/part-of": "istio",
}
VERSION_LABELS = {"app.kubernetes.io/version", "helm.sh/chart"}


def test_it_is_called_as_istiod_istioctl_and_dashboards_expect() -> None:
    found = daemonset()

    assert found.name == "ztunnel"
    assert found.at("metadata", "namespace") == "istio-system"
    assert found.at("spec", "selector") == {"matchLabels": {"app": "ztunnel"}}
    assert found.keys("spec") == {"updateStrategy", "selector", "template"}
    rolling: Json = {"maxSurge": 1, "maxUnavailable": 0}
    assert found.at("spec", "updateStrategy") == {"type": "RollingUpdate", "rollingUpdate": rolling}


def test_the_pod_is_labelled_and_annotated() -> None:
    found = daemonset()

    labels = found.at("spec", "template", "metadata", "labels")
    assert isinstance(labels, dict)
    assert set(labels) >= VERSION_LABELS
    assert {name: text for name, text in labels.items() if name not in VERSION_LABELS} == {
        "app": "ztunnel",
        "sidecar.istio.io/inject": "false",
        "istio.io/dataplane-mode": "none",
        **COMMON_LABELS,
    }
    assert found.at("spec", "template", "metadata", "annotations") == {
        "sidecar.istio.io/inject": "false",
        "prometheus.io/port": "15020",
        "prometheus.io/scrape": "true",
    }


def test_the_pod_has_what_a_node_proxy_needs_and_nothing_more() -> None:
    found = daemonset()

    assert found.keys(*POD) == {
        "serviceAccountName",
        "priorityClassName",
        "terminationGracePeriodSeconds",
        "nodeSelector",
        "tolerations",
        "containers",
        "volumes",
    }
    assert found.at(*POD, "serviceAccountName") == "ztunnel"
    assert found.at(*POD, "priorityClassName") == "system-node-critical"
    assert found.at(*POD, "terminationGracePeriodSeconds") == 30
    assert found.at(*POD, "nodeSelector") == {"kubernetes.io/os": "linux"}
    assert found.at(*POD, "tolerations") == [
        {"effect": "NoSchedule", "operator": "Exists"},
        {"key": "CriticalAddonsOnly", "operator": "Exists"},
        {"effect": "NoExecute", "operator": "Exists"},
    ]


def test_there_is_one_container_which_is_ready_when_it_says_so() -> None:
    found = daemonset()

    assert set(found.named(*POD, "containers")) == {"istio-proxy"}
    assert found.keys(*CONTAINER) == {
        "name",
        "image",
        "args",
        "ports",
        "readinessProbe",
        "resources",
        "securityContext",
        "env",
        "volumeMounts",
    }
    assert found.at(*CONTAINER, "args") == ["proxy", "ztunnel"]
    assert found.at(*CONTAINER, "ports") == [
        {"name": "ztunnel-stats", "containerPort": 15020, "protocol": "TCP"}
    ]
    assert found.at(*CONTAINER, "readinessProbe") == {"httpGet": {"path": "/healthz/ready", "port": 15021}}
    assert found.at(*CONTAINER, "resources") == {"requests": {"cpu": "200m", "memory": "512Mi"}}


def test_the_container_has_the_three_capabilities_and_a_root_it_cannot_write() -> None:
    found = daemonset()

    assert found.at(*CONTAINER, "securityContext") == {
        "privileged": False,
        "allowPrivilegeEscalation": True,
        "readOnlyRootFilesystem": True,
        "runAsUser": 0,
        "runAsGroup": 1337,
        "runAsNonRoot": False,
        "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN", "SYS_ADMIN", "NET_RAW"]},
    }


def test_the_environment_is_the_stock_one() -> None:
    assert env() == DEFAULT_ENV


@pytest.mark.parametrize(
    ("values", "changed"),
    [
        ({"logAsJson": True}, {"LOG_FORMAT": "json"}),
        ({"network": "north"}, {"NETWORK": "north"}),
        ({"logLevel": "info,access=debug"}, {"RUST_LOG": "info,access=debug"}),
        ({"multiCluster": {"clusterName": "east"}}, {"ISTIO_META_CLUSTER_ID": "east"}),
        ({"terminationGracePeriodSeconds": 1200000}, {"TERMINATION_GRACE_PERIOD_SECONDS": "1200000"}),
        (
            {"revision": "canary"},
            {
                "CA_ADDRESS": "istiod-canary.istio-system.svc:15012",
                "XDS_ADDRESS": "istiod-canary.istio-system.svc:15012",
            },
        ),
        (
            {"istioNamespace": "mesh"},
            {"CA_ADDRESS": "istiod.mesh.svc:15012", "XDS_ADDRESS": "istiod.mesh.svc:15012"},
        ),
        ({"caAddress": "ca.example:15012"}, {"CA_ADDRESS": "ca.example:15012"}),
        ({"xdsAddress": "xds.example:15012"}, {"XDS_ADDRESS": "xds.example:15012"}),
        (
            {"meshConfig": {"defaultConfig": {"proxyMetadata": {"ISTIO_META_NETWORK": "north"}}}},
            {"ISTIO_META_NETWORK": "north"},
        ),
        (
            {"resources": {"limits": {"cpu": 2}}},
            {"ZTUNNEL_RESOURCE_CPU_LIMIT": cpu("limits.cpu")},
        ),
        ({"peerCaCrl": {"enabled": True}}, {"CRL_PATH": "/var/run/secrets/istio/crl/ca-crl.pem"}),
        (
            {"env": {"HTTP2_CONNECTION_WINDOW_SIZE": 16777216, "IPV6_ENABLED": False, "SECRET_TTL": "12h"}},
            {"HTTP2_CONNECTION_WINDOW_SIZE": "16777216", "IPV6_ENABLED": "false", "SECRET_TTL": "12h"},
        ),
        ({"env": {"RUST_BACKTRACE": 0}}, {"RUST_BACKTRACE": "0"}),
    ],
)
def test_a_value_changes_its_variables_and_no_other(values: Values, changed: dict[str, Json]) -> None:
    assert env(values) == DEFAULT_ENV | changed


def test_without_a_cpu_request_none_is_told() -> None:
    assert "ZTUNNEL_RESOURCE_CPU_REQUEST" not in env({"resources": {"requests": {"cpu": ""}}})


def test_a_crl_path_comes_after_the_extra_variables() -> None:
    found = daemonset({"env": {"A": "1"}, "peerCaCrl": {"enabled": True}})

    assert list(found.named(*CONTAINER, "env"))[-2:] == ["A", "CRL_PATH"]


def test_volumes_and_mounts_are_the_stock_ones() -> None:
    found = daemonset()

    token: Json = {"path": "istio-token", "audience": "istio-ca", "expirationSeconds": 43200}
    assert found.named(*POD, "volumes") == {
        "istio-token": {"projected": {"sources": [{"serviceAccountToken": token}]}},
        "istiod-ca-cert": {"configMap": {"name": "istio-ca-root-cert"}},
        "cni-ztunnel-sock-dir": {"hostPath": {"path": "/var/run/ztunnel", "type": "DirectoryOrCreate"}},
        "tmp": {"emptyDir": {}},
    }
    assert found.named(*CONTAINER, "volumeMounts") == {
        "istiod-ca-cert": {"mountPath": "/var/run/secrets/istio"},
        "istio-token": {"mountPath": "/var/run/secrets/tokens"},
        "cni-ztunnel-sock-dir": {"mountPath": "/var/run/ztunnel"},
        "tmp": {"mountPath": "/tmp"},
    }


def test_revocation_lists_are_mounted_for_reading() -> None:
    found = daemonset({"peerCaCrl": {"enabled": True}})

    assert found.named(*POD, "volumes")["crl-volume"] == {
        "configMap": {"name": "istio-ca-crl", "optional": True}
    }
    assert found.named(*CONTAINER, "volumeMounts")["crl-volume"] == {
        "mountPath": "/var/run/secrets/istio/crl",
        "readOnly": True,
    }


@pytest.mark.parametrize("switch", [True, "true"])
@pytest.mark.parametrize(("given", "bundle"), [("", "root-cert"), ("other", "other")])
def test_the_root_can_come_from_a_cluster_trust_bundle(switch: Json, given: str, bundle: str) -> None:
    found = daemonset({"env": {"ENABLE_CLUSTER_TRUST_BUNDLE_API": switch}, "trustBundleName": given})

    source: Json = {"name": f"istio.io:istiod-ca:{bundle}", "path": "root-cert.pem"}
    assert found.named(*POD, "volumes")["istiod-ca-cert"] == {
        "projected": {"sources": [{"clusterTrustBundle": source}]}
    }


def test_the_root_can_be_another_config_map() -> None:
    found = daemonset({"trustBundleName": "our-roots"})

    assert found.named(*POD, "volumes")["istiod-ca-cert"] == {"configMap": {"name": "our-roots"}}


@pytest.mark.parametrize(
    ("values", "image"),
    [
        ({}, "ztunnel-trio:APP"),
        ({"tag": "1.2"}, "ztunnel-trio:1.2"),
        ({"hub": "hub.example/mesh"}, "hub.example/mesh/ztunnel-trio:APP"),
        ({"hub": "hub.example/mesh/", "tag": "1.2"}, "hub.example/mesh/ztunnel-trio:1.2"),
        ({"global": {"hub": "hub.example", "tag": "9"}}, "hub.example/ztunnel-trio:9"),
        ({"image": "proxy"}, "proxy:APP"),
        ({"image": "hub.example/proxy@sha256:0", "hub": "ignored", "tag": "1"}, "hub.example/proxy@sha256:0"),
        ({"variant": "distroless"}, "ztunnel-trio:APP"),
        ({"global": {"variant": "debug"}}, "ztunnel-trio:APP"),
    ],
)
def test_the_image_is_named_by_hub_image_and_tag(values: Values, image: str) -> None:
    found = daemonset(values)

    version = found.at("metadata", "labels", "app.kubernetes.io/version")
    assert found.at(*CONTAINER, "image") == image.replace("APP", str(version))


@pytest.mark.parametrize(
    ("values", "path", "wanted"),
    [
        ({"imagePullPolicy": "Always"}, (*CONTAINER, "imagePullPolicy"), "Always"),
        ({"affinity": {"podAntiAffinity": {}}}, (*POD, "affinity"), {"podAntiAffinity": {}}),
        (
            {"nodeSelector": {"disk": "ssd", "kubernetes.io/os": "windows"}},
            (*POD, "nodeSelector"),
            {"disk": "ssd", "kubernetes.io/os": "linux"},
        ),
        ({"tolerations": [{"operator": "Exists"}]}, (*POD, "tolerations"), [{"operator": "Exists"}]),
        ({"tolerations": []}, (*POD, "tolerations"), None),
        ({"dnsPolicy": "Default"}, (*POD, "dnsPolicy"), "Default"),
        ({"dnsConfig": {"searches": ["x"]}}, (*POD, "dnsConfig"), {"searches": ["x"]}),
        ({"terminationGracePeriodSeconds": 60}, (*POD, "terminationGracePeriodSeconds"), 60),
        (
            {"updateStrategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": "10%"}}},
            ("spec", "updateStrategy", "rollingUpdate"),
            {"maxSurge": 0, "maxUnavailable": "10%"},
        ),
        (
            {"resources": {"requests": {"cpu": "", "memory": "1Gi"}, "limits": {"memory": None}}},
            (*CONTAINER, "resources"),
            {"requests": {"memory": "1Gi"}},
        ),
        ({"resources": {"requests": {"cpu": "", "memory": ""}}}, (*CONTAINER, "resources"), None),
        (
            {"seLinuxOptions": {"type": "spc_t"}},
            (*CONTAINER, "securityContext", "seLinuxOptions"),
            {"type": "spc_t"},
        ),
        ({"podLabels": {"team": "net"}}, ("spec", "template", "metadata", "labels", "team"), "net"),
        ({"labels": {"team": "net"}}, ("metadata", "labels", "team"), "net"),
        ({"labels": {"team": "net"}}, ("spec", "template", "metadata", "labels", "team"), None),
        ({"annotations": {"a": "b"}}, ("metadata", "annotations"), {"a": "b"}),
        (
            {"revision": "canary", "podAnnotations": {"prometheus.io/port": "1", "x": "y"}},
            ("spec", "template", "metadata", "annotations"),
            {
                "sidecar.istio.io/inject": "false",
                "istio.io/rev": "canary",
                "prometheus.io/port": "1",
                "prometheus.io/scrape": "true",
                "x": "y",
            },
        ),
        ({"resourceName": "zt"}, ("metadata", "name"), "zt"),
        ({"resourceName": "zt"}, (*POD, "serviceAccountName"), "zt"),
        ({"resourceName": "zt"}, ("spec", "selector"), {"matchLabels": {"app": "ztunnel"}}),
    ],
)
def test_a_value_reaches_its_field(values: Values, path: tuple[str | int, ...], wanted: Json) -> None:
    assert daemonset(values).at(*path) == wanted


def test_volumes_and_mounts_are_appended() -> None:
    volume: Json = {"name": "more", "emptyDir": {}}
    mount: Json = {"name": "more", "mountPath": "/more"}
    found = daemonset({"volumes": [volume], "volumeMounts": [mount]})

    assert list(found.named(*POD, "volumes"))[-1] == "more"
    assert list(found.named(*CONTAINER, "volumeMounts"))[-1] == "more"


def test_without_spire_nothing_of_the_node_is_seen() -> None:
    found = daemonset()

    assert "hostPID" not in found.keys(*POD)
    assert "CA_PROVIDER" not in env()


def test_selectors_and_pods_need_the_agents_socket_and_nothing_else() -> None:
    values: Values = {"spire": {"enabled": True}}
    found = daemonset(values)

    assert env(values)["SPIRE_ADMIN_ENDPOINT_SOCKET"] == "unix:///run/spire/admin/admin.sock"
    assert found.named(*POD, "volumes")["spire-0"] == {
        "hostPath": {"path": "/run/spire/admin", "type": "Directory"},
    }
    assert "hostPID" not in found.keys(*POD)
    assert found.at(*CONTAINER, "securityContext", "capabilities", "add") == [
        "NET_ADMIN",
        "SYS_ADMIN",
        "NET_RAW",
    ]


def test_processes_of_the_node_take_its_pid_namespace_and_a_capability() -> None:
    found = daemonset({"spire": {"enabled": True, "provider": "spire_delegated_pid"}})

    assert found.at(*POD, "hostPID") is True
    assert found.at(*CONTAINER, "securityContext", "capabilities", "add") == [
        "NET_ADMIN",
        "SYS_ADMIN",
        "NET_RAW",
        "SYS_PTRACE",
    ]


def test_processes_that_the_container_runtime_tells_take_its_socket_instead() -> None:
    spire: dict[str, Json] = {
        "enabled": True,
        "provider": "spire_delegated_pid",
        "runtimeSocket": "/run/containerd/containerd.sock",
    }
    found = daemonset({"spire": spire})

    assert "hostPID" not in found.keys(*POD)
    assert env({"spire": spire})["CONTAINER_RUNTIME_SOCK_PATH"] == "/run/containerd/containerd.sock"
    assert found.named(*POD, "volumes")["spire-1"]["hostPath"]["path"] == "/run/containerd"  # type: ignore[call-overload, index]
