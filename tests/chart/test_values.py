"""Which value wins, and which are refused."""

import pytest

from tests.chart.helm import Json, RefusedError, Values, one, render


def log_level(values: Values) -> Json:
    env = one(render(values), "DaemonSet").named("spec", "template", "spec", "containers", 0, "env")
    entry = env["RUST_LOG"]
    assert isinstance(entry, dict)
    return entry["value"]


def test_what_the_user_sets_wins_over_global_and_that_over_the_default() -> None:
    assert log_level({}) == "info"
    assert log_level({"global": {"logLevel": "warn"}}) == "warn"
    assert log_level({"global": {"logLevel": "warn"}, "logLevel": "debug"}) == "debug"


def test_a_users_value_wins_over_the_profiles_even_when_it_is_false() -> None:
    metadata: Json = {"ISTIO_META_ENABLE_HBONE": False}
    objects = render({"profile": "ambient", "meshConfig": {"defaultConfig": {"proxyMetadata": metadata}}})
    env = one(objects, "DaemonSet").named("spec", "template", "spec", "containers", 0, "env")

    assert env["ISTIO_META_ENABLE_HBONE"] == {"value": "false"}


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ({"profile": "ambiant"}, ["profile", "ambiant", "ambient"]),
        ({"global": {"profile": "ambiant"}}, ["profile", "ambiant", "ambient"]),
        ({"platform": "gek"}, ["platform", "gek", "gke"]),
        ({"compatibilityVersion": "1.2"}, ["compatibilityVersion", "1.2", "1.25"]),
        ({"defaults": {"hub": "x"}}, ["defaults", "top level"]),
    ],
)
def test_an_unknown_name_is_refused_with_those_there_are(values: Values, wanted: list[str]) -> None:
    with pytest.raises(RefusedError) as refused:
        render(values)

    for text in wanted:
        assert text in str(refused.value)


@pytest.mark.parametrize(
    ("values", "path"),
    [
        ({"hub": 5}, "/hub"),
        ({"tag": 1.3}, "/tag"),
        ({"global": {"tag": 1.3}}, "/global/tag"),
        ({"image": ""}, "/image"),
        ({"imagePullPolicy": "Sometimes"}, "/imagePullPolicy"),
        ({"imagePullSecrets": [{"name": "x"}]}, "/imagePullSecrets/0"),
        ({"imagePullSecrets": "x"}, "/imagePullSecrets"),
        ({"resourceName": 1}, "/resourceName"),
        ({"resourceScope": "node"}, "/resourceScope"),
        ({"platform": 1}, "/platform"),
        ({"profile": True}, "/profile"),
        ({"compatibilityVersion": 1.25}, "/compatibilityVersion"),
        ({"ownerName": 1}, "/ownerName"),
        ({"revision": 1}, "/revision"),
        ({"istioNamespace": []}, "/istioNamespace"),
        ({"caAddress": 15012}, "/caAddress"),
        ({"xdsAddress": 15012}, "/xdsAddress"),
        ({"multiCluster": {"clusterName": 1}}, "/multiCluster/clusterName"),
        ({"network": {}}, "/network"),
        ({"meshConfig": {"defaultConfig": {"proxyMetadata": {"A": []}}}}, "/proxyMetadata/A"),
        ({"env": {"A": {"valueFrom": "x"}}}, "/env/A"),
        ({"env": [{"name": "A"}]}, "/env"),
        ({"trustBundleName": 1}, "/trustBundleName"),
        ({"peerCaCrl": {"enabled": "yes"}}, "/peerCaCrl/enabled"),
        ({"logLevel": 1}, "/logLevel"),
        ({"logAsJson": "true"}, "/logAsJson"),
        ({"resources": {"requests": {"cpu": True}}}, "/resources/requests/cpu"),
        ({"resources": {"request": {"cpu": 1}}}, "/resources"),
        ({"resourceQuotas": {"enabled": 1}}, "/resourceQuotas/enabled"),
        ({"resourceQuotas": {"pods": 1.5}}, "/resourceQuotas/pods"),
        ({"terminationGracePeriodSeconds": "30"}, "/terminationGracePeriodSeconds"),
        ({"terminationGracePeriodSeconds": -1}, "/terminationGracePeriodSeconds"),
        ({"updateStrategy": {"type": "Recreate"}}, "/updateStrategy/type"),
        (
            {"updateStrategy": {"rollingUpdate": {"maxSurge": "ten"}}},
            "/updateStrategy/rollingUpdate/maxSurge",
        ),
        ({"tolerations": {"operator": "Exists"}}, "/tolerations"),
        ({"affinity": []}, "/affinity"),
        ({"nodeSelector": {"gpu": True}}, "/nodeSelector/gpu"),
        ({"dnsPolicy": "default"}, "/dnsPolicy"),
        ({"dnsConfig": []}, "/dnsConfig"),
        ({"labels": {"a": 1}}, "/labels/a"),
        ({"annotations": {"a": True}}, "/annotations/a"),
        ({"podLabels": {"a": 1}}, "/podLabels/a"),
        ({"podAnnotations": {"prometheus.io/port": 15020}}, "/podAnnotations/prometheus.io~1port"),
        ({"volumes": [{"emptyDir": {}}]}, "/volumes/0"),
        ({"volumeMounts": {}}, "/volumeMounts"),
        ({"seLinuxOptions": {"type": 1}}, "/seLinuxOptions/type"),
        ({"variant": 1}, "/variant"),
        ({"global": {"networkPolicy": {"enabled": "x"}}}, "/global/networkPolicy/enabled"),
        ({"global": {"logAsJson": 1}}, "/global/logAsJson"),
    ],
)
def test_a_mistyped_value_is_refused_with_its_path(values: Values, path: str) -> None:
    with pytest.raises(RefusedError, match=f"{path}'"):
        render(values)


def test_a_value_of_another_chart_below_global_is_let_be() -> None:
    assert render({"global": {"proxy": {"image": 5}}}) == render()
