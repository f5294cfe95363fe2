"""Values files whose rendered objects are kept in `rendered/`, one file a case.

`python -m tests.chart.cases` writes them anew; read the difference before you commit it.
"""

from pathlib import Path
from typing import Final

import yaml

from tests.chart.helm import Values, render

RENDERED: Final = Path(__file__).parent / "rendered"
PLATFORMS: Final = ("gke", "k3d", "k3s", "microk8s", "minikube", "openshift")
PROFILES: Final = ("ambient", "demo", "preview", "remote", "stable")
VERSIONS: Final = ("1.25", "1.26", "1.27", "1.28", "1.29", "1.30")

# What teams have for the stock chart: settings of the whole mesh below `global`, some for other charts.
STOCK: Final[Values] = {
    "profile": "ambient",
    "global": {
        "hub": "hub.example/mesh",
        "tag": "1.30.0",
        "variant": "distroless",
        "imagePullPolicy": "IfNotPresent",
        "imagePullSecrets": ["pull"],
        "platform": "gke",
        "network": "north",
        "logAsJson": True,
        "istioNamespace": "mesh",
        "multiCluster": {"enabled": True, "clusterName": "east"},
        "meshID": "mesh1",
        "proxy": {"logLevel": "warning", "autoInject": "enabled"},
        "networkPolicy": {"enabled": True},
    },
    "resourceName": "ztunnel-east",
    "revision": "1-30-0",
    "logLevel": "info,access=warn",
    "caAddress": "ca.example:15012",
    "meshConfig": {
        "defaultConfig": {"proxyMetadata": {"ISTIO_META_DNS_CAPTURE": "true"}},
        "accessLogFile": "",
    },
    "env": {"L7_ENABLED": "false", "POOL_MAX_STREAMS_PER_CONNECTION": 50},
    "resources": {"limits": {"cpu": "2", "memory": "1Gi"}, "requests": {"cpu": "500m"}},
    "affinity": {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "mesh", "operator": "Exists"}]}]
            }
        }
    },
    "tolerations": [{"operator": "Exists"}],
    "nodeSelector": {"pool": "general"},
    "podAnnotations": {"prometheus.io/scrape": "false"},
    "podLabels": {"team": "net"},
    "labels": {"team": "net"},
    "annotations": {"owner": "net"},
    "terminationGracePeriodSeconds": 60,
    "updateStrategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}},
    "peerCaCrl": {"enabled": True},
    "volumes": [{"name": "more", "emptyDir": {}}],
    "volumeMounts": [{"name": "more", "mountPath": "/more"}],
    "dnsPolicy": "ClusterFirst",
    "dnsConfig": {"options": [{"name": "ndots", "value": "2"}]},
}

CASES: Final[dict[str, Values]] = {
    "default": {},
    "stock": STOCK,
    "trust-bundle": {"env": {"ENABLE_CLUSTER_TRUST_BUNDLE_API": True}},
    "spire-selectors": {"spire": {"enabled": True}},
    "spire-pid": {"spire": {"enabled": True, "provider": "spire_delegated_pid"}},
    "spire-broker": {
        "spire": {
            "enabled": True,
            "provider": "spiffe_broker",
            "attestation": "pid",
            "runtimeSocket": "/run/containerd/containerd.sock",
        }
    },
    **{f"platform-{name}": {"platform": name} for name in PLATFORMS},
    **{f"profile-{name}": {"profile": name} for name in PROFILES},
}


def main() -> None:
    RENDERED.mkdir(exist_ok=True)
    for name, values in CASES.items():
        (RENDERED / f"{name}.yaml").write_text(yaml.safe_dump_all([each.body for each in render(values)]))


if __name__ == "__main__":
    main()
