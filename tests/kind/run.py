"""Make a cluster, install Istio and this chart, check, mix with the stock proxy, check again, remove it all.

    python -m tests.kind.run [--dry-run] [--keep] [--why-not]

Istio's charts come from `ISTIO_CHARTS`: a folder of them, or what helm takes before `/base` (a repository's
name, or a registry's address). Its images come from `ISTIO_HUB`, of the tag `ISTIO_TAG` or the charts' own.
`--dry-run` tells every command; `--why-not` says in one line what is missing, and nothing where nothing is.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.kind.checks import MANIFESTS, Checks, NotAsPromisedError
from tests.kind.shell import CommandFailedError, Shell, real

CLUSTER: Final = "ztunnel-trio"
IMAGE: Final = "ztunnel-trio:kind"
NAMESPACE: Final = "istio-system"
TOOLS: Final = ("docker", "kind", "kubectl", "helm")
MIX: Final = "mesh.example.com/ztunnel"
# Where a checkout of Istio keeps what repositories call otherwise.
FOLDERS: Final = {"istiod": "istio-control/istio-discovery", "cni": "istio-cni"}
DEPLOYMENTS: Final = ("sleep", "notsleep", "web-api", "recommendation", "purchase-history")


@dataclass(frozen=True, slots=True)
class Istio:
    """Where Istio comes from."""

    charts: str
    hub: str
    tag: str = ""

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> "Istio":
        return cls(
            environ.get("ISTIO_CHARTS", ""), environ.get("ISTIO_HUB", ""), environ.get("ISTIO_TAG", "")
        )

    def chart(self, name: str) -> str:
        """What helm is given for a chart."""
        folder = Path(self.charts) / FOLDERS.get(name, name)
        return str(folder) if folder.is_dir() else f"{self.charts}/{name}"

    def values(self) -> tuple[str, ...]:
        """Options that name the images."""
        tag = ("--set-string", f"global.tag={self.tag}") if self.tag else ()
        return ("--set", f"global.hub={self.hub}", *tag)


def why_not(environ: Mapping[str, str]) -> str:
    """What is missing, in one line; empty when nothing is."""
    missing = [name for name in ("ISTIO_CHARTS", "ISTIO_HUB") if not environ.get(name)]
    if missing:
        return f"set {' and '.join(missing)} to where Istio's charts and images are"
    tools = [tool for tool in TOOLS if shutil.which(tool) is None]
    if tools:
        return f"there is no {', no '.join(tools)}"
    return "" if real(("docker", "info")).code == 0 else "no Docker daemon answers"


def run(shell: Shell, istio: Istio, *, keep: bool) -> None:
    """All of it. The cluster is removed at the end, however that comes, unless it is to be kept.

    Raises:
        CommandFailedError, NotAsPromisedError: what went wrong.
    """
    shell.do("docker", "build", "--tag", IMAGE, ".")
    try:
        create(shell)
        install_istio(shell, istio)
        install_ours(shell)
        deploy(shell)
        Checks(shell).all()
        mix(shell, istio)
        Checks(shell).all()
    finally:
        if not keep:
            shell.do("kind", "delete", "cluster", "--name", CLUSTER)


def create(shell: Shell) -> None:
    """Three nodes that have the image."""
    config = f"{MANIFESTS}/cluster.yaml"
    shell.do("kind", "create", "cluster", "--name", CLUSTER, "--config", config, "--wait", "120s")
    shell.do("kind", "load", "docker-image", IMAGE, "--name", CLUSTER)


def install_istio(shell: Shell, istio: Istio) -> None:
    """Base, control plane and the node agent, for ambient. istiod trusts our second account."""
    common = ("--namespace", NAMESPACE, "--create-namespace", "--wait", *istio.values())
    shell.do("helm", "install", "istio-base", istio.chart("base"), *common)
    shell.do("helm", "install", "istiod", istio.chart("istiod"), *common, "--set", "profile=ambient")
    accounts = ",".join(f"{NAMESPACE}/{name}" for name in ("ztunnel", "ztunnel-trio"))
    trust = f"CA_TRUSTED_NODE_ACCOUNTS={accounts}"
    shell.do("kubectl", "--namespace", NAMESPACE, "set", "env", "deployment/istiod", trust)
    rolled_out(shell, "deployment/istiod", namespace=NAMESPACE)
    shell.do("helm", "install", "istio-cni", istio.chart("cni"), *common, "--set", "profile=ambient")


def install_ours(shell: Shell) -> None:
    """This chart, in the stock one's place on every node."""
    helm_ours(shell, "install", "ztunnel")
    rolled_out(shell, "daemonset/ztunnel", namespace=NAMESPACE)


def helm_ours(shell: Shell, verb: str, name: str, *more: str) -> None:
    """Install or upgrade this chart as a release with objects of that name."""
    image = ("--set-string", f"tag={IMAGE.partition(':')[2]}", "--set", "imagePullPolicy=Never")
    named = ("--set", f"resourceName={name}")
    shell.do("helm", verb, name, "charts/ztunnel-trio", "--namespace", NAMESPACE, *image, *named, *more)


def deploy(shell: Shell) -> None:
    """The workshop's applications, in the mesh."""
    shell.do("kubectl", "label", "namespace", "default", "istio.io/dataplane-mode=ambient")
    shell.do("kubectl", "create", "configmap", "app", "--from-file", "tests/kind/app")
    shell.do("kubectl", "apply", "--filename", f"{MANIFESTS}/apps.yaml")
    for name in DEPLOYMENTS:
        rolled_out(shell, f"deployment/{name}")


def mix(shell: Shell, istio: Istio) -> None:
    """The stock proxy everywhere but on the first worker, where ours is, under a name of its own."""
    shell.do("helm", "uninstall", "ztunnel", "--namespace", NAMESPACE, "--wait")
    shell.do("kubectl", "label", "node", "--selector", "workshop=first", f"{MIX}=trio")
    keep_off = ("--values", f"{MANIFESTS}/keep-off.values.yaml")
    stock = ("helm", "install", "ztunnel", istio.chart("ztunnel"), "--namespace", NAMESPACE)
    shell.do(*stock, *istio.values(), *keep_off)
    helm_ours(
        shell,
        "install",
        "ztunnel-trio",
        "--set-string",
        f"nodeSelector.{MIX.replace('.', chr(92) + '.')}=trio",
    )
    for name in ("ztunnel", "ztunnel-trio"):
        rolled_out(shell, f"daemonset/{name}", namespace=NAMESPACE)


def rolled_out(shell: Shell, what: str, *, namespace: str = "default") -> None:
    shell.do("kubectl", "--namespace", namespace, "rollout", "status", what, "--timeout", "180s")


def main(arguments: list[str], environ: Mapping[str, str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--dry-run", action="store_true", help="only tell the commands")
    parser.add_argument("--keep", action="store_true", help="leave the cluster")
    parser.add_argument("--why-not", action="store_true", help="say what is missing, in one line")
    asked = parser.parse_args(arguments)
    if asked.why_not:
        sys.stdout.write(why_not(environ))
        return 0
    shell = Shell(run=None) if asked.dry_run else Shell()
    try:
        run(shell, Istio.of(environ), keep=asked.keep)
    except (CommandFailedError, NotAsPromisedError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))  # noqa: TID251  where it is told what to install
