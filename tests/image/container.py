"""Starts the image's proxy as a kubelet would: `python -m tests.image.container FILES STATE`.

The lab runs this in a proxy's place, with the environment for it, in the node's network namespace. Arguments,
user, capabilities, mounts and further variables are those of the chart, as rendered; the lab's files take the
places of the chart's volumes. This process becomes runc, which passes signals on.
"""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final, TypeAlias

import yaml

from ztunnel_trio.lab.proxy_process import PID_FILE

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"

RENDERED: Final = Path(__file__).parents[1] / "chart" / "rendered" / "default.yaml"
# Variables that name the lab's files; inside, the chart's mounts are where the proxy looks by itself.
FILES_OF_LAB: Final = ("AUTH_TOKEN", "CA_ROOT_CA", "XDS_ROOT_CA", "INPOD_UDS")
NOT_FOR_INSIDE: Final = ("PATH", "HOME", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "LANG")
PROGRAM: Final = "/usr/local/bin/ztunnel-trio"
SOCKET: Final = "/var/run/ztunnel/ztunnel.sock"


def chart_container() -> dict[str, Json]:
    """The proxy's container of the chart with default values."""
    (pod,) = [
        document["spec"]["template"]["spec"]
        for document in yaml.safe_load_all(RENDERED.read_text())
        if document["kind"] == "DaemonSet"
    ]
    (container,) = pod["containers"]
    assert isinstance(container, dict)
    return container


def bundle(files: Path, given: Mapping[str, str]) -> dict[str, Json]:
    """The runtime configuration for one proxy, given what the lab tells it."""
    container = chart_container()
    security = container["securityContext"]
    assert isinstance(security, dict)
    granted = security["capabilities"]
    assert isinstance(granted, dict)
    assert granted["drop"] == ["ALL"]
    assert isinstance(granted["add"], list)
    capabilities: Json = [f"CAP_{name}" for name in granted["add"]]
    arguments = container["args"]
    assert isinstance(arguments, list)
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": security["runAsUser"], "gid": security["runAsGroup"]},
            "args": [PROGRAM, *arguments],
            "env": environment(container, given),
            "cwd": "/",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
            "noNewPrivileges": not security["allowPrivilegeEscalation"],
        },
        "root": {"path": str(files), "readonly": security["readOnlyRootFilesystem"]},
        "mounts": [*KERNELS_OWN, *mounts(container, given)],
        # The network is the node's as the lab made it: the one this process is in.
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    }


KERNELS_OWN: Final[tuple[Json, ...]] = (
    {"destination": "/proc", "type": "proc", "source": "proc"},
    {
        "destination": "/dev",
        "type": "tmpfs",
        "source": "tmpfs",
        "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
    },
)


def environment(container: Mapping[str, Json], given: Mapping[str, str]) -> list[Json]:
    """The chart's fixed variables, under those of the lab."""
    variables = {"PATH": "/usr/local/bin:/usr/bin"}
    entries = container["env"]
    assert isinstance(entries, list)
    for entry in entries:
        assert isinstance(entry, dict)
        if isinstance(value := entry.get("value"), str):
            variables[str(entry["name"])] = value
    variables |= {
        name: value for name, value in given.items() if name not in (*FILES_OF_LAB, *NOT_FOR_INSIDE)
    }
    return [f"{name}={value}" for name, value in variables.items()]


def mounts(container: Mapping[str, Json], given: Mapping[str, str]) -> list[Json]:
    """The lab's files at the chart's mount paths, the agent's socket under istio-cni's name."""
    sources: dict[str, list[tuple[str, str]]] = {
        "istio-token": [(given["AUTH_TOKEN"], "istio-token")],
        "istiod-ca-cert": [(given["XDS_ROOT_CA"], "root-cert.pem")],
        "cni-ztunnel-sock-dir": [(given["INPOD_UDS"], Path(SOCKET).name)],
    }
    made: list[Json] = [_bind("/etc/resolv.conf", "/etc/resolv.conf")]
    entries = container["volumeMounts"]
    assert isinstance(entries, list)
    for entry in entries:
        assert isinstance(entry, dict)
        place = str(entry["mountPath"])
        if entry["name"] == "tmp":
            made.append({"destination": place, "type": "tmpfs", "source": "tmpfs"})
        else:
            made += [_bind(source, f"{place}/{name}") for source, name in sources[str(entry["name"])]]
    if shared := given.get("FAKE_CA_ROOT"):  # a proxy without istiod: a folder it shares with others
        folder = str(Path(shared).parent)
        made.append(_bind(folder, folder, "rw"))
    return made


def _bind(source: str, destination: str, how: str = "ro") -> Json:
    return {"destination": destination, "type": "bind", "source": source, "options": ["bind", how]}


def main(files: str, state: str) -> None:
    """Become the container's runtime."""
    given = dict(os.environ)  # noqa: TID251  handed on to the container
    identity = f"proxy-{os.getpid()}"
    directory = Path(state) / identity
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(bundle(Path(files), given)))
    run = [
        "runc",
        "--root",
        f"{state}/runc",
        "run",
        "--bundle",
        str(directory),
        "--pid-file",
        PID_FILE,
        identity,
    ]
    os.execvp(run[0], run)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
