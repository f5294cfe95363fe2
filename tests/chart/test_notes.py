"""What helm tells after an installation."""

import pytest

from tests.chart.helm import Values, notes


def test_three_commands_check_it() -> None:
    told = notes()

    for command in (
        "kubectl --namespace istio-system rollout status daemonset/ztunnel",
        "istioctl ztunnel-config workloads --namespace istio-system",
        "kubectl --namespace istio-system logs daemonset/ztunnel --container istio-proxy",
    ):
        assert f"\n  {command}\n" in told
    assert "WARNING" not in told


@pytest.mark.parametrize(
    "values",
    [
        {"image": "ztunnel"},
        {"image": "hub.example/ztunnel:1.30.0-distroless"},
        {"hub": "hub.example/istio"},
        {"global": {"hub": "images.istio.io/testing"}},
        {"hub": "hub.example/istio-release"},
    ],
)
def test_an_image_of_istios_own_is_warned_of(values: Values) -> None:
    assert "has a name of Istio's own" in notes(values)


def test_an_image_of_ours_is_not_warned_of() -> None:
    assert "WARNING" not in notes({"hub": "hub.example/mesh", "tag": "1.0"})


def test_values_without_a_meaning_are_named() -> None:
    assert "no meaning for this chart: logLvel, replicas." in notes({"logLvel": "debug", "replicas": 3})


def test_another_name_is_one_that_istiod_must_be_told() -> None:
    assert "`trustedZtunnelName` must be zt." in notes({"resourceName": "zt"})
    assert "trustedZtunnelName" not in notes()
