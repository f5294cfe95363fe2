"""Makes docs/dashboards.md: what Istio's dashboard for ztunnel asks Prometheus, and what it is answered here.

`python -m tests.docs.dashboard_page > docs/dashboards.md` builds the demo's mesh, runs Prometheus (Debian's
package `prometheus`) beside it, makes some traffic and asks each query.
"""

import json
import os
import subprocess
import sys
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final
from urllib.parse import quote

import dns.message
import trio
import yaml

from tests.docs.page import table
from ztunnel_trio.facts.network import STATS_PORT
from ztunnel_trio.lab import apps, demo, http
from ztunnel_trio.lab.mesh import Lab, LabSettings, Pod, open_lab
from ztunnel_trio.lab.report import PlainTeller
from ztunnel_trio.model.address import SocketAddress

PROMETHEUS: Final = SocketAddress(IPv4Address("127.0.0.1"), 9090)
NAME_SERVER: Final = ("10.96.0.10", 53)  # any: the pods' questions are redirected
SCRAPES: Final = 8  # a second apart, for a rate to be told
SECONDS: Final = 60.0
PODS: Final = 'pod=~"ztunnel-.*"'


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel, or one of its lines; `name` is the dashboard's (Grafana's number 21306)."""

    name: str
    query: str


def by_pod(expression: str) -> str:
    return f"sum by (pod) ({expression})"


def rate(name: str) -> str:
    return by_pod(f"rate({name}{{{PODS}}}[5s])")


PANELS: Final = (
    Panel("Ztunnel Versions", 'sum by (tag) (istio_build{component="ztunnel"})'),
    Panel("Connections, opened", rate("istio_tcp_connections_opened_total")),
    Panel("Connections, closed", rate("istio_tcp_connections_closed_total")),
    Panel("Bytes Transmitted, sent", rate("istio_tcp_sent_bytes_total")),
    Panel("Bytes Transmitted, received", rate("istio_tcp_received_bytes_total")),
    Panel("DNS Request", rate("istio_dns_requests_total")),
    Panel("XDS Connections", by_pod(f"increase(istio_xds_connection_terminations_total{{{PODS}}}[1m])")),
    Panel("XDS Pushes", f"sum by (url) (rate(istio_xds_message_total{{{PODS}}}[5s]))"),
    Panel("Workload Manager, active", by_pod(f"workload_manager_active_proxy_count{{{PODS}}}")),
    Panel("Workload Manager, pending", by_pod(f"workload_manager_pending_proxy_count{{{PODS}}}")),
    Panel(
        "Resource Usage, open connections",
        f"{by_pod(f'istio_tcp_connections_opened_total{{{PODS}}}')}"
        f" - {by_pod(f'istio_tcp_connections_closed_total{{{PODS}}}')}",
    ),
    Panel("Resource Usage, file descriptors", by_pod(f"process_open_fds{{{PODS}}}")),
    Panel("Resource Usage, sockets", by_pod(f"istio_tcp_sockets_open{{{PODS}}}")),
)
HEAD: Final = """\
# Dashboards

Istio's own dashboard for ztunnel (number 21306 at Grafana) works unchanged: the metrics have the names and
the labels of the reference, and the chart gives pods the labels that the dashboard filters by. Import it as
it is.

The table shows what the panels ask, and what Prometheus answered during a demo on one machine: two nodes, a
call a second through three services, one DNS question with each, and two reconnections of the control plane.
A test asks the same again (`tests/netns/test_dashboard.py`). The panels for memory and processor time of
containers ask Kubernetes' own metrics, not the proxy's.

"""
TAIL: Final = """
The windows of five seconds stand for the dashboard's interval. For panels beyond Istio's,
[Operations](operations.md#metrics) has queries over the metrics that only this proxy has.
"""


async def answers() -> list[tuple[Panel, list[str]]]:
    """Each panel with the series it was answered, `label: value`.

    Raises:
        TooSlowError: Prometheus does not come up, or has not seen both proxies, in a minute.
    """
    with trio.fail_after(SECONDS):
        async with open_lab(LabSettings(watch_wire=False)) as lab:
            scene = await demo.build(lab, PlainTeller(sys.stderr))
            async with prometheus(lab):
                for number in range(SCRAPES):
                    await call(scene.lab.pods["sleep"], lab.address_of(demo.CHAIN[0]))
                    if number in (1, SCRAPES // 2):
                        lab.istiod.cut()
                    await trio.sleep(1)
                return [(panel, await ask(lab, panel.query)) for panel in PANELS]


async def call(pod: Pod, target: SocketAddress) -> None:
    """Ask for a name, then call."""
    with pod.host.netns.inside():
        asking = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
    with asking:
        await asking.connect(NAME_SERVER)
        await asking.send(dns.message.make_query("web-api.default.svc.cluster.local", "A").to_wire())
        await asking.recv(4096)
    await apps.call(pod.host, target, marker="")


@contextmanager
def settings_of(lab: Lab) -> Iterator[Path]:
    """A directory with a configuration that gives the labels which the chart's pods have."""
    pods = [
        {
            "targets": [f"{node.host.ip}:{STATS_PORT}"],
            "labels": {"app": "ztunnel", "container": "istio-proxy", "pod": f"ztunnel-{name}"},
        }
        for name, node in lab.nodes.items()
    ]
    document = {
        "global": {"scrape_interval": "1s"},
        "scrape_configs": [{"job_name": "ztunnel", "static_configs": pods}],
    }
    with TemporaryDirectory(prefix="prometheus-") as directory:
        Path(directory, "prometheus.yml").write_text(yaml.safe_dump(document))
        yield Path(directory)


@asynccontextmanager
async def prometheus(lab: Lab) -> AsyncGenerator[None, None]:
    """Prometheus on the fabric, which reaches the nodes, from when it has scraped both."""
    with settings_of(lab) as directory:
        launcher = [
            sys.executable,
            "-m",
            "ztunnel_trio.lab.launch",
            str(os.getpid()),
            lab.fabric.host.path,
            "-",
        ]
        options = [
            f"--config.file={directory / 'prometheus.yml'}",
            f"--storage.tsdb.path={directory / 'data'}",
            f"--web.listen-address={PROMETHEUS}",
            "--log.level=error",
        ]
        process = start([*launcher, "prometheus", *options])
        try:
            while await ask_if_up(lab, "count(up == 1)") != [f"{len(lab.nodes)}"]:  # noqa: ASYNC110
                await trio.sleep(0.2)
            yield
        finally:
            process.kill()
            process.wait()


def start(command: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command)


async def ask_if_up(lab: Lab, query: str) -> list[str]:
    try:
        return await ask(lab, query)
    except OSError:
        return []


async def ask(lab: Lab, query: str) -> list[str]:
    """The answer to a query now, a text for each series: its labels and its value."""
    async with await lab.fabric.host.connect(PROMETHEUS) as stream:
        response = await http.fetch(stream, f"/api/v1/query?query={quote(query)}", host=str(PROMETHEUS))
    if response.status != 200:  # 503 while it starts
        return []
    told = json.loads(response.text)
    return sorted(text_of(series["metric"], series["value"]) for series in told["data"]["result"])


def text_of(labels: Mapping[str, str], value: Sequence[object]) -> str:
    """`ztunnel-node-1: 2.5`; a value alone where there are no labels."""
    number = f"{float(str(value[1])):.4g}"
    return ": ".join([*(text.rpartition("/")[2] for text in labels.values()), number])


def page(found: Sequence[tuple[Panel, Sequence[str]]]) -> str:
    """The whole page."""
    rows = [(panel.name, f"`{panel.query}`", "<br>".join(series)) for panel, series in found]
    return f"{HEAD}{table(('Panel', 'Query', 'Answer'), rows)}{TAIL}"


if __name__ == "__main__":
    sys.stdout.write(page(trio.run(answers)))
