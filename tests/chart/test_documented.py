"""The helm commands of docs/install.md render this chart as the page says; none is sent to a cluster."""

import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.chart.helm import CHART, find
from tests.docs.blocks import ROOT, blocks
from ztunnel_trio import __version__

OURS = "charts/ztunnel-trio"
COMMANDS = [
    shlex.split(command)
    for block in blocks()
    if block.page == "docs/install.md"
    for command, _ in block.commands()
    if command.startswith("helm ") and OURS in command
]
ONLY_WITH_A_CLUSTER = ("--reuse-values", "--reset-values")
STOCK_VALUES = {"hub": "docker.example/istio", "image": "ztunnel", "tag": "1.30.0", "logLevel": "debug"}


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: f"{words[1]} {words[2]}")
def test_a_documented_helm_command_renders(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "stock-values.yaml").write_text(yaml.safe_dump(STOCK_VALUES))
    helm = find()
    assert helm is not None
    _, _, release, *rest = words
    options = [str(CHART) if word == OURS else word for word in rest if word not in ONLY_WITH_A_CLUSTER]

    done = subprocess.run(
        [helm, "template", release, *options], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    objects = [one for one in yaml.safe_load_all(done.stdout) if one]
    [daemonset] = [one for one in objects if one["kind"] == "DaemonSet"]
    pod = daemonset["spec"]["template"]["spec"]
    assert daemonset["metadata"]["name"] == release
    assert pod["serviceAccountName"] == release
    if "stock-values.yaml" in options:
        assert pod["containers"][0]["image"] == f"registry.example.com/mesh/ztunnel-trio:{__version__}"
    if any(word.startswith("nodeSelector") for word in options):
        assert pod["nodeSelector"]["mesh.example.com/ztunnel"] == "trio"


def test_the_page_keeps_the_stock_proxy_off_the_same_nodes() -> None:
    page = (ROOT / "docs" / "install.md").read_text()

    assert "{ key: mesh.example.com/ztunnel, operator: NotIn, values: [trio] }" in page
    assert "kubectl label node worker-1 mesh.example.com/ztunnel=trio" in page
