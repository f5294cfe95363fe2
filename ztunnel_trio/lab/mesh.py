"""A whole mesh on one machine: fabric, control plane, nodes with their proxies, pods, services.

    async with open_lab(LabSettings()) as lab:
        client = await lab.add_pod("client", node="node-1")
        server = await lab.add_pod("server", node="node-2")
        await lab.start()
        await server.serve(8080, apps.echo)
        async with await client.connect(SocketAddress(server.ip, 8080)) as stream: ...

Theory of operation. Everything but the proxies runs in this process: istiod, the agents and the applications
are Trio tasks in one nursery, on sockets that belong to the namespaces of `lab.hosts`. A proxy is a process
of its own (`lab.proxy_process`) that the kernel ends with this one. Leaving the context kills the proxies,
cancels the tasks and closes the namespaces; after a crash only a directory is left, which the next lab
removes (`sweep`).
"""

import itertools
import json
import os
import shutil
import tempfile
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Final

import trio

from ztunnel_trio.control import grpc
from ztunnel_trio.facts.network import ADDRESS_TYPE, DEFAULT_CLUSTER, DEFAULT_TRUST_DOMAIN
from ztunnel_trio.lab import apps, capture, resources
from ztunnel_trio.lab.cni import Agent
from ztunnel_trio.lab.hosts import GATEWAY_V4, NODES, OUTSIDERS, PODS, RESOLVER, Fabric, Host
from ztunnel_trio.lab.identities import DIRECTORY, SpireIdentities
from ztunnel_trio.lab.istiod import PORT, Answer, Istiod
from ztunnel_trio.lab.pki import Authority
from ztunnel_trio.lab.proxy_log import ProxyLog
from ztunnel_trio.lab.proxy_process import ProxyProcess, default_command
from ztunnel_trio.lab.resolver import Resolver
from ztunnel_trio.lab.resources import Resource
from ztunnel_trio.model.address import IPAddress, SocketAddress
from ztunnel_trio.model.identity import SpiffeId
from ztunnel_trio.pb.workload_pb2 import Service, Workload

TOKEN: Final = "lab-token"
PROXY_NAMESPACE, PROXY_ACCOUNT = "istio-system", "ztunnel"
_DIRECTORY_PREFIX: Final = "ztunnel-trio-lab-"
_STATE_FILE: Final = "lab.json"
_VIPS: Final = IPv4Address("10.96.0.0")
_FIRST_VIP: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class LabSettings:
    """What kind of lab. `environment` is added to every proxy's; a value None takes a variable away."""

    nodes: Sequence[str] = ("node-1", "node-2")
    command: Sequence[str] | None = None  # instead of this package's own proxy
    commands: Mapping[str, Sequence[str]] = field(default_factory=dict)  # by node
    environment: Mapping[str, str | None] = field(default_factory=dict)
    intermediate: bool = False  # workloads are certified by an intermediate CA
    watch_wire: bool = True  # a packet socket looks at all traffic; off for measurements
    ready_seconds: float = 30.0
    spire: str | None = None  # CA_PROVIDER, where certificates come from a stand-in SPIRE agent
    spire_processes: bool = False  # and pods have a process of their own to be attested by


@dataclass(slots=True, eq=False)
class Node:
    """A node: its namespace, its agent and the proxy that runs there now."""

    lab: "Lab"
    name: str
    host: Host
    agent: Agent
    directory: Path
    proxy: ProxyProcess
    resolv: Path

    @property
    def log(self) -> ProxyLog:
        return self.proxy.log

    def start(self) -> None:
        """Start the proxy without waiting.

        Raises:
            OSError: it cannot be started.
        """
        self.proxy.start(resolv=self.resolv)

    async def wait_ready(self) -> None:
        """Wait until it is ready to serve every pod the agent knows.

        Raises:
            ProxyFailed: it ended.
            TooSlowError: `LabSettings.ready_seconds` have passed.
        """
        seconds = self.lab.settings.ready_seconds
        with trio.move_on_after(seconds) as waiting:
            await self.proxy.wait_ready()
            await self.agent.connection()
        if waiting.cancelled_caught:
            tail = "\n".join(self.log.raw()[-10:])
            raise trio.TooSlowError(f"the proxy of {self.name} was not ready within {seconds:.0f} s:\n{tail}")

    async def restart(self) -> None:
        """Kill the proxy and start another; errors as `wait_ready`."""
        self.proxy.kill()
        self.start()
        await self.wait_ready()


@dataclass(slots=True, eq=False)
class Pod:
    """A pod, or a machine outside the mesh (`node` None)."""

    lab: "Lab"
    name: str
    namespace: str
    service_account: str
    node: Node | None
    host: Host
    uid: str
    is_captured: bool
    hbone: bool
    services: dict[str, dict[int, int]] = field(default_factory=dict)
    policies: list[str] = field(default_factory=list)
    change: Callable[[Workload], None] | None = None  # the last word about its workload
    running: list[apps.App] = field(default_factory=list)
    _serving: list[trio.CancelScope] = field(default_factory=list)

    @property
    def ip(self) -> IPv4Address:
        return self.host.ip

    @property
    def ip6(self) -> IPv6Address:
        return self.host.ip6

    @property
    def identity(self) -> SpiffeId:
        return SpiffeId(DEFAULT_TRUST_DOMAIN, self.namespace, self.service_account)

    @property
    def workload_uid(self) -> str:
        """Its name at istiod; `uid` is the one Kubernetes gave it, which the agent uses."""
        return resources.pod_uid(self.namespace, self.name)

    def workload(self) -> Workload:
        """What istiod says of it at present."""
        made = resources.workload(
            self.name,
            namespace=self.namespace,
            service_account=self.service_account,
            addresses=[str(self.ip), str(self.ip6)],
            node=self.node.name if self.node else "",
            hbone=self.hbone,
            services=self.services,
            policies=self.policies,
        )
        if self.change is not None:
            self.change(made)
        return made

    async def serve(self, port: int, handler: apps.Handler) -> apps.App:
        """Run an application in the pod until the pod or the lab ends.

        Raises:
            OSError: the port is taken.
        """

        async def run(*, task_status: trio.TaskStatus[apps.App]) -> None:
            with trio.CancelScope() as scope:
                self._serving.append(scope)
                await apps.run_app(self.host, port, handler, task_status=task_status)

        app: apps.App = await self.lab.nursery.start(run)
        self.running.append(app)
        return app

    async def connect(
        self, address: SocketAddress, *, source: IPAddress | None = None, source_port: int = 0
    ) -> trio.SocketStream:
        """Dial as a program in the pod, see `Host.connect`; the caller sets the deadline.

        Raises:
            OSError: as the kernel gave it.
        """
        return await self.host.connect(address, source=source, source_port=source_port)

    def stop_apps(self) -> None:
        """End its applications, as the end of their processes."""
        for scope in self._serving:
            scope.cancel(reason="the pod's applications end")
        self._serving.clear()
        self.running.clear()

    def listening(self) -> list[int]:
        """The TCP ports somebody listens on in its namespace, as the kernel tells."""
        rows = self._socket_table("tcp", "tcp6")
        return sorted({int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == _TCP_LISTEN})

    def sockets(self) -> set[str]:
        """The inode numbers of all TCP and UDP sockets in its namespace that some process holds."""
        rows = self._socket_table("tcp", "tcp6", "udp", "udp6")
        return {row[9] for row in rows} - {"0"}

    def _socket_table(self, *names: str) -> list[list[str]]:
        with self.host.netns.inside():
            tables = [Path(f"/proc/thread-self/net/{name}").read_text() for name in names]
        return [row.split() for table in tables for row in table.splitlines()[1:]]


_TCP_LISTEN: Final = "0A"  # include/net/tcp_states.h


class Lab:
    """What `open_lab` gives. Attributes are for looking at; methods change the mesh."""

    def __init__(self, settings: LabSettings, directory: Path, fabric: Fabric, nursery: trio.Nursery) -> None:
        self.settings = settings
        self.directory = directory
        self.fabric = fabric
        self.nursery = nursery
        self.root = Authority()
        self.authority = self.root.intermediate() if settings.intermediate else self.root
        self.istiod = Istiod(self.root, authority=self.authority, token=TOKEN)
        self.spire: SpireIdentities | None = None
        if settings.spire is not None:
            own = SpiffeId(DEFAULT_TRUST_DOMAIN, PROXY_NAMESPACE, PROXY_ACCOUNT)
            self.spire = SpireIdentities(
                settings.spire, own, directory / DIRECTORY, with_processes=settings.spire_processes
            )
        self.wire = capture.Wire()
        self.resolver = Resolver()
        self.nodes: dict[str, Node] = {}
        self.pods: dict[str, Pod] = {}
        self.services: dict[str, Service] = {}
        self._extra_hosts: list[Host] = []
        self._extra_proxies: list[ProxyProcess] = []
        self._vips = itertools.count(_FIRST_VIP)
        self._uids = itertools.count(1)

    # ---------------------------------------------------------------- building

    async def add_node(self, name: str) -> Node:
        """A node with an agent; its proxy is started by `start`.

        Raises:
            KernelLacks: naming what.
        """
        host = await self.fabric.plug(name, NODES)
        directory = self.directory / name
        directory.mkdir()
        resolv = directory / "resolv.conf"
        resolv.write_text(f"nameserver {RESOLVER}\n")
        agent = Agent(str(directory / "zds.sock"))
        await self.nursery.start(agent.run)
        command = self.settings.commands.get(name) or self.settings.command or default_command()
        proxy = ProxyProcess(
            host, directory, command=command, environment=self._environment(name, host, agent)
        )
        node = self.nodes[name] = Node(self, name, host, agent, directory, proxy, resolv)
        return node

    async def add_proxy(self, node: Node, name: str) -> ProxyProcess:
        """A second proxy for a node, in a namespace of its own, as during a rolling upgrade. It is not
        started; the agent greets it when it comes.

        Raises:
            KernelLacks: naming what.
        """
        host = await self.fabric.plug(name, NODES)
        self._extra_hosts.append(host)
        directory = self.directory / name
        directory.mkdir()
        environment = self._environment(node.name, host, node.agent)
        proxy = ProxyProcess(host, directory, command=node.proxy.command, environment=environment)
        self._extra_proxies.append(proxy)
        return proxy

    async def add_pod(
        self,
        name: str,
        *,
        node: str,
        namespace: str = "default",
        service_account: str | None = None,
        captured: bool = True,
        known: bool = True,
        dns: bool = True,
        ip: IPv4Address | None = None,
        change: Callable[[Workload], None] | None = None,
    ) -> Pod:
        """A pod on a node: namespace, redirection, the agent told and istiod told, in istio's order.

        Without `captured` it is a pod the mesh leaves alone; without `known` istiod says nothing about it;
        `ip` is the address of a pod that was deleted.

        Raises:
            KernelLacks: naming what.
            ProxyRefused: the proxy did not acknowledge the pod.
        """
        host = await self.fabric.plug(name, PODS, ip=ip)
        pod = Pod(
            self,
            name,
            namespace,
            name if service_account is None else service_account,
            self.nodes[node],
            host,
            f"pod-{next(self._uids)}-{name}",
            captured,
            captured,
            change=change,
        )
        self.pods[name] = pod
        if captured:
            if self.spire is not None:
                self.spire.register(pod)
            await host.capture(dns=dns)
            await self.enrol(pod)
        if known:
            await self.istiod.push(pod.workload())
        self._write_state()
        return pod

    async def add_outsider(self, name: str) -> Pod:
        """A machine on the fabric that nobody in the mesh knows.

        Raises:
            KernelLacks: naming what.
        """
        host = await self.fabric.plug(name, OUTSIDERS)
        pod = self.pods[name] = Pod(self, name, "", "", None, host, name, is_captured=False, hbone=False)
        self._write_state()
        return pod

    async def add_service(
        self,
        name: str,
        pods: Sequence[Pod] = (),
        *,
        namespace: str = "default",
        ports: Mapping[int, int] | None = None,
        address: str | None = None,
        change: Callable[[Service], None] | None = None,
    ) -> Service:
        """A service with an address of its own and these pods behind it; ports are {service: target}."""
        hostname = f"{name}.{namespace}.svc.cluster.local"
        vip = address or str(_VIPS + next(self._vips))
        chosen = dict(ports or {80: 8080})
        service = resources.service(hostname, namespace=namespace, addresses=[vip], ports=chosen)
        if change is not None:
            change(service)
        for pod in pods:
            pod.services[f"{namespace}/{hostname}"] = chosen
        self.services[name] = service
        await self.istiod.push(service, *(pod.workload() for pod in pods))
        self._write_state()
        return service

    def address_of(self, service: str, port: int | None = None) -> SocketAddress:
        """The first address of a service, and its first port unless another is named."""
        found = self.services[service]
        ip = IPv4Address(found.addresses[0].address)
        return SocketAddress(ip, found.ports[0].service_port if port is None else port)

    async def push(self, *changed: Resource, removed: Sequence[str] = ()) -> list[Answer]:
        """Tell every proxy and wait until they have taken it; errors as `Istiod.push`."""
        return await self.istiod.push(*changed, removed=removed)

    async def attach_policy(self, policy: Resource, *pods: Pod) -> list[Answer]:
        """A policy for these pods alone (its scope has to be WORKLOAD_SELECTOR)."""
        key = resources.stored(policy).name
        for pod in pods:
            pod.policies.append(key)
        return await self.istiod.push(policy, *(pod.workload() for pod in pods))

    # ---------------------------------------------------------------- living

    async def start(self, *names: str) -> None:
        """Start the proxies of these nodes (all) and wait until they are ready.

        Raises:
            ProxyFailed, TooSlowError: one is not.
        """
        nodes = [self.nodes[name] for name in names] or list(self.nodes.values())
        for node in nodes:
            node.start()
        for node in nodes:
            await node.wait_ready()

    async def enrol(self, pod: Pod) -> None:
        """Tell the pod's proxy about it, or the agent only while no proxy runs.

        Raises:
            ProxyRefused: the proxy could not serve it.
        """
        assert pod.node is not None
        agent, netns = pod.node.agent, pod.host.netns
        facts = {"name": pod.name, "namespace": pod.namespace, "service_account": pod.service_account}
        if not pod.node.proxy.is_running:
            agent.remember(pod.uid, netns=netns, **facts)
        elif error := await agent.add(pod.uid, netns=netns, **facts):
            raise ProxyRefused(error)

    async def withdraw(self, pod: Pod) -> None:
        """Take a pod from its proxy and from istiod; its namespace and applications stay."""
        if pod.node is not None and pod.uid in pod.node.agent.pods:
            if pod.node.proxy.is_running:
                await pod.node.agent.delete(pod.uid)
            else:
                del pod.node.agent.pods[pod.uid]
        if pod.workload_uid in self.istiod.state[ADDRESS_TYPE]:
            await self.istiod.push(removed=[pod.workload_uid])

    async def delete_pod(self, pod: Pod) -> None:
        """End a pod: its applications, its place in the mesh, its namespace."""
        pod.stop_apps()
        await self.withdraw(pod)
        if self.spire is not None:
            self.spire.forget(pod.uid)
        await self.fabric.unplug(pod.host)
        del self.pods[pod.name]
        self._write_state()

    async def replant(self, pod: Pod) -> None:
        """Give a pod a new namespace under its old uid, as a sandbox that was made anew; its address changes.

        Raises:
            KernelLacks: naming what.
            ProxyRefused: the proxy could not serve it.
        """
        pod.stop_apps()
        old, pod.host = pod.host, await self.fabric.plug(pod.name, PODS)
        if self.spire is not None:
            self.spire.register(pod)
        await pod.host.capture()
        await self.enrol(pod)
        await self.istiod.push(pod.workload())
        await self.fabric.unplug(old)
        self._write_state()

    def hosts(self) -> list[Host]:
        """Every host but the fabric."""
        nodes = [node.host for node in self.nodes.values()]
        return [*nodes, *(pod.host for pod in self.pods.values()), *self._extra_hosts]

    def proxies(self) -> list[ProxyProcess]:
        """Every proxy, started or not."""
        return [*(node.proxy for node in self.nodes.values()), *self._extra_proxies]

    async def start_istiod(self) -> None:
        """Serve the control plane (again, after `Istiod.stop`)."""
        await self.nursery.start(self.istiod.run, self.fabric.host)

    def _environment(self, node: str, host: Host, agent: Agent) -> dict[str, str]:
        address = f"https://{GATEWAY_V4}:{PORT}"
        roots = str(self.directory / "root-cert.pem")
        environment: dict[str, str | None] = {  # as istio's chart sets it
            "CA_ADDRESS": address,
            "XDS_ADDRESS": address,
            "CA_ROOT_CA": roots,
            "XDS_ROOT_CA": roots,
            "AUTH_TOKEN": str(self.directory / "istio-token"),
            "CLUSTER_ID": DEFAULT_CLUSTER,
            "INPOD_ENABLED": "true",
            "INPOD_UDS": agent.path,
            "INSTANCE_IP": str(host.ip),
            "ISTIO_META_DNS_CAPTURE": "true",
            "ISTIO_META_DNS_PROXY_ADDR": "127.0.0.1:15053",
            "NODE_NAME": node,
            "POD_NAME": f"ztunnel-{node}",
            "POD_NAMESPACE": PROXY_NAMESPACE,
            "RUST_LOG": "info",
            "SERVICE_ACCOUNT": PROXY_ACCOUNT,
            **({} if self.spire is None else self.spire.environment()),
            **self.settings.environment,
        }
        return {name: value for name, value in environment.items() if value is not None}

    def _write_state(self) -> None:
        """Where other processes find the namespaces: `find_labs`."""
        services = {
            name: {"ip": str(self.address_of(name).ip), "port": self.address_of(name).port}
            for name in self.services
        }
        state = {"hosts": {host.name: {"path": host.path, "ip": str(host.ip)} for host in self.hosts()}}
        path = self.directory / _STATE_FILE
        path.with_suffix(".new").write_text(json.dumps({**state, "services": services}))
        path.with_suffix(".new").replace(path)


class ProxyRefused(Exception):
    """A proxy answered a pod's addition with an error, which is the text."""


@asynccontextmanager
async def open_lab(
    settings: LabSettings, *, progress: Callable[[str], None] = lambda _: None
) -> AsyncGenerator[Lab, None]:
    """Build a lab with its nodes and control plane for the body's time; the proxies are not started yet.

    Raises:
        KernelLacks: the kernel has no rights or no parts for it; the text names what.
    """
    sweep()
    directory = Path(tempfile.mkdtemp(prefix=f"{_DIRECTORY_PREFIX}{os.getpid()}-"))
    lab: Lab | None = None
    try:
        progress("fabric and control plane")
        fabric = await Fabric.build()
        async with grpc.open_control_loop(), trio.open_nursery() as nursery, AsyncExitStack() as agents:
            lab = Lab(settings, directory, fabric, nursery)
            try:
                if lab.spire is not None:
                    progress("a stand-in SPIRE agent")
                    await agents.enter_async_context(lab.spire.running())
                (directory / "root-cert.pem").write_text(lab.root.root_pem)
                (directory / "istio-token").write_text(TOKEN)
                if settings.watch_wire:
                    await nursery.start(capture.watch, fabric.host, lab.wire)
                await nursery.start(lab.resolver.run, fabric.host)
                await lab.start_istiod()
                for name in settings.nodes:
                    progress(f"node {name}")
                    await lab.add_node(name)
                yield lab
            finally:
                for proxy in lab.proxies():
                    proxy.kill()
                nursery.cancel_scope.cancel(reason="the lab closes")
    finally:
        if lab is not None:
            for host in lab.hosts():
                host.close()
            lab.fabric.close()
        shutil.rmtree(directory, ignore_errors=True)


def sweep() -> list[Path]:
    """Remove the directories of labs whose process is gone; returns them. Nothing else outlives a lab."""
    removed: list[Path] = []
    for directory in Path(tempfile.gettempdir()).glob(f"{_DIRECTORY_PREFIX}*"):
        pid = directory.name.removeprefix(_DIRECTORY_PREFIX).partition("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(directory, ignore_errors=True)
            removed.append(directory)
    return removed


@dataclass(frozen=True, slots=True)
class FoundLab:
    """A lab of another process: its hosts' namespaces and its services' addresses, by name."""

    pid: int
    directory: Path
    namespaces: Mapping[str, str]
    addresses: Mapping[str, str]


def find_labs() -> list[FoundLab]:
    """The labs that are up on this machine now, the newest last."""
    found: list[tuple[float, FoundLab]] = []
    for path in Path(tempfile.gettempdir()).glob(f"{_DIRECTORY_PREFIX}*/{_STATE_FILE}"):
        pid = path.parent.name.removeprefix(_DIRECTORY_PREFIX).partition("-")[0]
        if not (pid.isdigit() and Path(f"/proc/{pid}").exists()):
            continue
        state = json.loads(path.read_text())
        namespaces = {str(name): str(host["path"]) for name, host in state["hosts"].items()}
        addresses = {str(name): str(host["ip"]) for name, host in state["hosts"].items()}
        addresses |= {str(name): f"{one['ip']}:{one['port']}" for name, one in state["services"].items()}
        found.append((path.stat().st_mtime, FoundLab(int(pid), path.parent, namespaces, addresses)))
    return [lab for _, lab in sorted(found, key=lambda pair: pair[0])]
