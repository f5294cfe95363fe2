"""The commands in their order, and what the checks make of answers; no cluster is asked."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.chart import helm
from tests.chart.helm import CHART, one
from tests.kind import run as program
from tests.kind.checks import CHAIN, HOPS, Checks, NotAsPromisedError
from tests.kind.run import IMAGE, TOOLS, Istio, why_not
from tests.kind.shell import ROOT, CommandFailedError, Done, Shell

ISTIO = Istio("charts", "hub.example/istio", "1.30.0")
LINE = (
    'access connection complete src.identity="spiffe://cluster.local/ns/default/sa/{0}"'
    ' dst.hbone_addr=10.0.0.1:8080 dst.identity="spiffe://cluster.local/ns/default/sa/{1}"'
    ' direction="inbound"'
)


def told(*, keep: bool = False) -> list[tuple[str, ...]]:
    shell = Shell(run=None)
    program.run(shell, ISTIO, keep=keep)
    return shell.told


def test_a_dry_run_tells_commands_of_the_four_tools_on_files_that_exist() -> None:
    for command in told():
        assert command[0] in TOOLS
        for option, value in itertools.pairwise(command):
            if option in ("--filename", "--config", "--values", "--from-file"):
                assert (ROOT / value).exists(), command


def test_the_cluster_is_made_first_and_removed_last() -> None:
    commands = told()

    assert commands[0][:2] == ("docker", "build")
    assert commands[1][:3] == ("kind", "create", "cluster")
    assert commands[-1] == ("kind", "delete", "cluster", "--name", program.CLUSTER)
    assert commands[1:] == [*told(keep=True)[1:], commands[-1]]


def test_istio_is_installed_before_ours_and_applications_after() -> None:
    releases = [command[2] for command in told() if command[:2] == ("helm", "install")]

    assert releases == ["istio-base", "istiod", "istio-cni", "ztunnel", "ztunnel", "ztunnel-trio"]
    steps = [" ".join(command) for command in told()]
    apps = next(index for index, text in enumerate(steps) if "apps.yaml" in text)
    ours = next(index for index, text in enumerate(steps) if "charts/ztunnel-trio" in text)
    assert ours < apps


def test_istios_images_are_of_the_hub_and_tag_that_were_named() -> None:
    for command in told():
        if command[:2] == ("helm", "install") and "charts/ztunnel-trio" not in command:
            assert "global.hub=hub.example/istio" in command
            assert "global.tag=1.30.0" in command


def test_a_folder_of_charts_may_be_a_checkout_of_istio(tmp_path: Path) -> None:
    for name in ("base", "istio-control/istio-discovery", "istio-cni", "ztunnel"):
        (tmp_path / name).mkdir(parents=True)
    checkout = Istio(str(tmp_path), "hub")

    assert checkout.chart("istiod") == str(tmp_path / "istio-control/istio-discovery")
    assert checkout.chart("cni") == str(tmp_path / "istio-cni")
    assert checkout.chart("base") == str(tmp_path / "base")
    assert Istio("istio", "hub").chart("istiod") == "istio/istiod"


@pytest.mark.skipif(helm.find() is None, reason="no helm: nox -s chart builds one with Go")
def test_the_charts_options_render_our_image_under_the_releases_name() -> None:
    ours = [command for command in told() if "charts/ztunnel-trio" in command]

    assert [command[2] for command in ours] == ["ztunnel", "ztunnel-trio"]
    options = [command[command.index("charts/ztunnel-trio") + 1 :] for command in ours]
    first, second = (one(helm.render(None, *each), "DaemonSet") for each in options)
    assert (first.name, second.name) == ("ztunnel", "ztunnel-trio")
    for found in (first, second):
        assert found.at("spec", "template", "spec", "containers", 0, "image") == IMAGE
    selector = second.at("spec", "template", "spec", "nodeSelector")
    assert selector == {"kubernetes.io/os": "linux", program.MIX: "trio"}
    assert (ROOT / "charts" / "ztunnel-trio") == CHART


def test_a_failure_is_told_and_the_cluster_removed_all_the_same() -> None:
    def fail_on_helm(command: Sequence[str]) -> Done:
        return Done(1, "", "no such chart") if command[0] == "helm" else Done(0, "")

    shell = Shell(run=fail_on_helm)
    with pytest.raises(CommandFailedError, match="no such chart"):
        program.run(shell, ISTIO, keep=False)

    assert shell.told[-1][:3] == ("kind", "delete", "cluster")


@pytest.mark.parametrize(
    ("environ", "reason"),
    [
        ({}, "set ISTIO_CHARTS and ISTIO_HUB to where"),
        ({"ISTIO_CHARTS": "istio"}, "set ISTIO_HUB to where"),
    ],
)
def test_what_is_missing_is_one_line(environ: dict[str, str], reason: str) -> None:
    assert reason in why_not(environ)
    assert "\n" not in why_not(environ)


class Cluster:
    """Answers as a cluster that keeps its promises, except where it is told not to."""

    def __init__(self, *, broken: str = "") -> None:
        self.broken = broken
        self.applied: set[str] = set()

    def __call__(self, command: Sequence[str]) -> Done:
        match list(command):
            case ["kubectl", "apply", _, name]:
                self.applied.add(Path(name).stem)
            case ["kubectl", "exec", caller, "--", *_, "get", _]:
                return self.call(caller.removeprefix("deployment/"))
            case ["kubectl", "exec", *_, "resolve", _]:
                return (
                    Done(1, "", "not known") if self.broken == "name" else Done(0, "240.240.0.1\n2001:2::1")
                )
            case ["kubectl", "--namespace", _, "logs", *_]:
                hops = HOPS[1:] if self.broken == "hbone" else HOPS
                return Done(0, "\n".join(LINE.format(caller, callee) for caller, callee in hops))
        return Done(0, "")

    def call(self, caller: str) -> Done:
        allowed = "deny-all" not in self.applied or ("policies" in self.applied and caller == "sleep")
        if not allowed and self.broken != "policy":
            return Done(1, "", "Connection reset by peer")
        names = CHAIN[:2] if self.broken == "chain" else CHAIN
        answer = ""
        for name in reversed(names):
            answer = f'{{"name": "{name}"{f", {chr(34)}upstream{chr(34)}: {answer}" if answer else ""}}}'
        return Done(0, answer)


def test_checks_hold_in_a_cluster_that_keeps_its_promises() -> None:
    cluster = Cluster()
    shell = Shell(run=cluster)

    Checks(shell, seconds=0, pause=0).all()

    assert cluster.applied == {"deny-all", "policies", "mesh-only-name"}
    deleted = [command[-1] for command in shell.told if command[:2] == ("kubectl", "delete")]
    assert {Path(name).stem for name in deleted} == cluster.applied


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("chain", "the chain was"),
        ("hbone", "no line of an HBONE connection from sleep to web-api"),
        ("policy", "sleep got an answer"),
        ("name", "mesh-only.example is"),
    ],
)
def test_each_promise_that_is_not_kept_is_noticed(broken: str, said: str) -> None:
    with pytest.raises(NotAsPromisedError, match=said):
        Checks(Shell(run=Cluster(broken=broken)), seconds=0, pause=0).all()


def test_notsleep_getting_an_answer_is_noticed() -> None:
    cluster = Cluster()

    def let_notsleep_in(command: Sequence[str]) -> Done:
        return cluster.call("sleep") if "deployment/notsleep" in command else cluster(command)

    with pytest.raises(NotAsPromisedError, match="notsleep got an answer"):
        Checks(Shell(run=let_notsleep_in), seconds=0, pause=0).all()
