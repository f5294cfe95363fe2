"""The chart renders what `rendered/` keeps, object by object; profiles and platforms do what they say."""

import pytest
import yaml

from tests.chart.cases import CASES, PLATFORMS, PROFILES, RENDERED, VERSIONS
from tests.chart.helm import CHART, Manifest, Values, one, render, run

NO_CHANGE = ("k3d", "k3s", "microk8s", "minikube")


@pytest.mark.parametrize("case", CASES)
def test_objects_are_those_that_were_kept(case: str) -> None:
    kept = [Manifest(body) for body in yaml.safe_load_all((RENDERED / f"{case}.yaml").read_text())]
    made = render(CASES[case])

    assert [(each.kind, each.name) for each in made] == [(each.kind, each.name) for each in kept]
    for new, old in zip(made, kept, strict=True):
        assert new.body == old.body, (
            f"{new.kind} {new.name}: python -m tests.chart.cases, and read the difference"
        )


def test_nothing_is_kept_that_is_not_rendered() -> None:
    assert {path.stem for path in RENDERED.iterdir()} == set(CASES)


@pytest.mark.parametrize(
    "values",
    [
        *({"platform": name} for name in NO_CHANGE),
        *({"global": {"platform": name}} for name in NO_CHANGE),
        *({"profile": name} for name in ("demo", "remote", "stable")),
        *({"compatibilityVersion": version} for version in VERSIONS),
    ],
)
def test_a_name_without_an_effect_here_changes_nothing(values: Values) -> None:
    assert render(values) == render()


@pytest.mark.parametrize("options", [(), ("--strict",)])
@pytest.mark.parametrize("case", CASES)
def test_helm_lint_finds_nothing(case: str, options: tuple[str, ...]) -> None:
    assert "1 chart(s) linted, 0 chart(s) failed" in run("lint", str(CHART), *options, values=CASES[case])


def test_every_preset_has_a_case() -> None:
    presets = yaml.safe_load((CHART / "files" / "presets.yaml").read_text())

    assert sorted(presets["platform"]) == sorted(PLATFORMS)
    assert sorted(presets["profile"]) == sorted(PROFILES)
    assert sorted(presets["compatibilityVersion"]) == sorted(VERSIONS)


def test_openshift_gives_the_container_its_selinux_type() -> None:
    found = one(render({"platform": "openshift"}), "DaemonSet")

    container = ("spec", "template", "spec", "containers", 0)
    assert found.at(*container, "securityContext", "seLinuxOptions") == {"type": "spc_t"}


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ({"profile": "ambient"}, ("ISTIO_META_ENABLE_HBONE", "true")),
        ({"global": {"profile": "preview"}}, ("ISTIO_META_DNS_CAPTURE", "true")),
    ],
)
def test_a_profile_sets_proxy_metadata(values: Values, wanted: tuple[str, str]) -> None:
    found = one(render(values), "DaemonSet").named("spec", "template", "spec", "containers", 0, "env")

    assert found[wanted[0]] == {"value": wanted[1]}
