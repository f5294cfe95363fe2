"""`ztunnel-trio demo`: the Istio ambient workshop's mesh on this machine, and what became of its calls.

Two nodes; `sleep` calls `web-api`, which calls `recommendation`, which calls `purchase-history`, each with a
service account of its own; a client in namespace `foo` is kept out of `default` by a DENY policy; a machine
outside the mesh calls in plain text, which shows that the packet socket would see a payload if there was one
to see. Then a pod is deleted. What is told of each comes from sockets, captured packets, the servers'
replies and the proxies' logs (`lab.evidence`).
"""

import contextlib
import os
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Final

import h11
import trio

from ztunnel_trio.facts.network import HBONE_PORT, INBOUND_PLAINTEXT_PORT, OUTBOUND_PORT
from ztunnel_trio.lab import apps, resources
from ztunnel_trio.lab.capture import Activity, CapturedFlow
from ztunnel_trio.lab.evidence import (
    DeletionEvidence,
    EvidenceParty,
    HopEvidence,
    Story,
    tell_allowed,
    tell_deletion,
    tell_plain,
    tell_refused,
)
from ztunnel_trio.lab.mesh import Lab, LabSettings, Node, Pod, find_labs, open_lab
from ztunnel_trio.lab.proxy_log import LogLine
from ztunnel_trio.lab.report import Account, Teller
from ztunnel_trio.model.address import SocketAddress
from ztunnel_trio.pb.authorization_pb2 import Match

HTTP_PORT: Final = 8080
ECHO_PORT: Final = 9000
PROXY_PORTS: Final = (OUTBOUND_PORT, INBOUND_PLAINTEXT_PORT, HBONE_PORT)
POLICY: Final = "keep-foo-out"
# caller -> callee, as in the workshop; the node of each
CHAIN: Final = ("web-api", "recommendation", "purchase-history")
PLACES: Final = {
    "sleep": "node-1",
    "web-api": "node-2",
    "recommendation": "node-2",
    "purchase-history": "node-1",
}
_LOOPBACK: Final = IPv4Address("127.0.0.1")
_LOG_SECONDS: Final = 3.0
_END_SECONDS: Final = 3.0
_SETTLE_SECONDS: Final = 0.05


@dataclass(frozen=True, slots=True)
class Mark:
    """Where logs, packets and applications stood before a call."""

    logs: Mapping[str, int]
    wire: Mapping[CapturedFlow, tuple[int, int]]
    peers: Mapping[str, int]


@dataclass(slots=True, eq=False)
class Scene:
    """The built mesh and the applications in it."""

    lab: Lab
    servers: dict[str, apps.App] = field(default_factory=dict)

    def mark(self) -> Mark:
        return Mark(
            {name: node.log.mark() for name, node in self.lab.nodes.items()},
            self.lab.wire.mark(),
            {name: len(app.peers) for name, app in self.servers.items()},
        )

    def party(self, name: str) -> EvidenceParty:
        pod = self.lab.pods[name]
        identity = str(pod.identity) if pod.node else ""
        return EvidenceParty(pod.name, pod.namespace, pod.node.name if pod.node else "", pod.ip, identity)


async def run(
    tell: Teller, *, settings: LabSettings | None = None, keep: Callable[[Lab], Awaitable[None]] | None = None
) -> bool:
    """Build, call, tell, delete; True when all was as promised. `keep` is awaited before taking it down.

    Raises:
        KernelLacks: the lab cannot be built here.
        ProxyFailed, ProxyRefused, TooSlowError: a proxy did not come up.
    """
    began = trio.current_time()
    account = Account()
    async with open_lab(settings or LabSettings(), progress=tell.progress) as lab:
        scene = await build(lab, tell)
        for hop in await _chained_call(scene):
            _tell(account, tell, tell_allowed(hop))
        _tell(account, tell, tell_refused(await _single_call(scene, "client"), f"default/{POLICY}"))
        _tell(account, tell, tell_plain(await _single_call(scene, "outsider")))
        account.deletion = tell_deletion(await _delete(scene, CHAIN[-1], "sleep"), PROXY_PORTS)
        tell.deletion(CHAIN[-1], account.deletion)
        tell.verdict(account, trio.current_time() - began)
        if keep is not None:
            await _replace(scene, CHAIN[-1])
            await keep(lab)
    return account.kept


async def build(lab: Lab, tell: Teller) -> Scene:
    """Pods, services, the policy and the proxies; errors as `run`."""
    scene = Scene(lab)
    for name, node in PLACES.items():
        tell.progress(f"pod {name} on {node}")
        await lab.add_pod(name, node=node)
    tell.progress("pod client in namespace foo, and a machine outside the mesh")
    await lab.add_pod("client", node="node-1", namespace="foo")
    await lab.add_outsider("outsider")
    for name in CHAIN:
        await lab.add_service(name, [lab.pods[name]], ports={HTTP_PORT: HTTP_PORT})
    for name, following in zip(CHAIN, [*CHAIN[1:], None], strict=True):
        host = lab.pods[name].host
        upstream = lab.address_of(following) if following else None
        scene.servers[name] = await lab.pods[name].serve(HTTP_PORT, apps.Hello(name, host, upstream))
    await lab.pods[CHAIN[-1]].serve(ECHO_PORT, apps.echo)
    tell.progress(f"policy default/{POLICY}: DENY from namespace foo")
    deny = resources.policy(POLICY, Match(namespaces=[resources.text_match("foo")]), deny=True)
    await lab.push(deny)
    tell.progress("two proxies, one a node")
    await lab.start()
    return scene


# ---------------------------------------------------------------- calls


async def _chained_call(scene: Scene) -> list[HopEvidence]:
    """`sleep` asks `web-api`, whose chain does the rest: one evidence a hop."""
    mark, marker = scene.mark(), _marker(scene)
    body, error = await _ask(scene.lab.pods["sleep"], scene.lab.address_of(CHAIN[0]), marker)
    told = list(apps.hops(body)) if body is not None else []
    evidence: list[HopEvidence] = []
    for position, (caller, callee) in enumerate(zip(("sleep", *CHAIN), CHAIN, strict=False)):
        answer = told[position] if position < len(told) else None
        failed = (answer.error if answer else None) or error or (None if answer else "no reply")
        if answer is not None and answer.marker != marker.decode():
            failed = failed or "the reply lacks the marker"
        evidence.append(await _gather(scene, mark, marker, caller, callee, failed))
    return evidence


async def _single_call(scene: Scene, caller: str) -> HopEvidence:
    """Somebody asks `web-api`, which the policy may forbid. The outsider dials the pod: it knows no VIPs."""
    mark, marker = scene.mark(), _marker(scene)
    pod, callee = scene.lab.pods[caller], CHAIN[0]
    target = scene.lab.address_of(callee) if pod.node else SocketAddress(scene.lab.pods[callee].ip, HTTP_PORT)
    _, error = await _ask(pod, target, marker)
    return await _gather(scene, mark, marker, caller, callee, error)


async def _ask(pod: Pod, target: SocketAddress, marker: bytes) -> tuple[bytes | None, str | None]:
    try:
        response = await apps.call(pod.host, target, marker=marker.decode())
    except apps.CallFailed as failure:
        return None, str(failure)
    return response.body, None


def _marker(scene: Scene) -> bytes:
    """A text that is in every request and reply of one call, and nowhere else."""
    marker = f"payload-{secrets.token_hex(16)}".encode()
    scene.lab.wire.look_for(marker)
    return marker


async def _gather(
    scene: Scene, mark: Mark, marker: bytes, caller: str, callee: str, error: str | None
) -> HopEvidence:
    """Collect what sockets, packets and logs say of one hop; log lines are written when connections end."""
    source, target = scene.party(caller), scene.party(callee)
    workloads = {"src.workload": caller, "dst.workload": callee}
    inbound = await _line(scene, mark, target.node, {"direction": "inbound", **_known(workloads, source)})
    outbound = None
    if source.node:
        outbound = await _line(scene, mark, source.node, {"direction": "outbound", **workloads})
    await trio.sleep(_SETTLE_SECONDS)  # the packet socket is read by a task of its own
    activity = scene.lab.wire.since(dict(mark.wire))
    between = [one for one in activity if (one.flow.client.ip, one.flow.server.ip) == (source.ip, target.ip)]
    server = scene.servers[callee]
    reached = [str(peer.ip) for peer in server.peers[mark.peers[callee] :]]
    return HopEvidence(
        caller=source,
        callee=target,
        port=HTTP_PORT,
        reached=reached,
        error=error,
        outbound=outbound,
        inbound=inbound,
        wire=between,
        in_clear=_seen_in_clear(activity, marker),
    )


def _known(workloads: Mapping[str, str], source: EvidenceParty) -> dict[str, str]:
    """A machine outside the mesh has no workload to be named by."""
    return {name: text for name, text in workloads.items() if source.node or name != "src.workload"}


def _seen_in_clear(activity: Sequence[Activity], marker: bytes) -> bool:
    return any(marker in one.flow.markers for one in activity)


async def _line(scene: Scene, mark: Mark, node: str, wanted: Mapping[str, str]) -> LogLine | None:
    with trio.move_on_after(_LOG_SECONDS):
        return (await scene.lab.nodes[node].log.wait_access(mark.logs[node], wanted))[-1]
    return None


def _tell(account: Account, tell: Teller, story: Story) -> None:
    account.stories.append(story)
    tell.story(story)


# ---------------------------------------------------------------- deletion


async def _delete(scene: Scene, name: str, client: str) -> DeletionEvidence:
    """Delete a pod under a live connection and look at what is left."""
    lab, pod = scene.lab, scene.lab.pods[name]
    assert pod.node is not None
    before, held_before = pod.listening(), _holds(pod, pod.node.proxy.pid)
    with trio.fail_after(_END_SECONDS):
        stream = await lab.pods[client].connect(SocketAddress(pod.ip, ECHO_PORT))
    async with stream:
        lived = await _carries_data(stream)
        began = trio.current_time()
        acknowledged = await pod.node.agent.delete(pod.uid)
        end = await _end_of(stream)
        seconds = trio.current_time() - began
    await lab.push(removed=[pod.workload_uid])
    after, refused = pod.listening(), [port for port in PROXY_PORTS if await _is_refused(pod, port)]
    mentioned = await _is_mentioned(pod.node, (pod.uid, pod.workload_uid))
    held_after = _holds(pod, pod.node.proxy.pid)
    others = await _others_served(scene)
    await lab.delete_pod(pod)
    return DeletionEvidence(
        pod=name,
        connection_lived=lived,
        connection_end=end,
        seconds=seconds,
        ports_before=before,
        ports_after=after,
        refused=refused,
        acknowledged=acknowledged,
        held_before=held_before,
        held_after=held_after,
        mentioned=mentioned,
        others_served=others,
    )


async def _is_mentioned(node: Node, names: Sequence[str]) -> bool | None:
    """Whether the proxy's config dump holds any of these names; None when it cannot be had."""
    try:
        response = await node.proxy.admin("/config_dump")
    except (OSError, trio.TooSlowError, trio.BrokenResourceError, h11.RemoteProtocolError):
        return None
    return any(name in response.text for name in names) if response.status == 200 else None


async def _replace(scene: Scene, name: str) -> None:
    """A new pod in a deleted one's place, as a Deployment would make it."""
    pod = await scene.lab.add_pod(name, node=PLACES[name])
    pod.services = {_service_key(scene.lab, name): {HTTP_PORT: HTTP_PORT}}
    await scene.lab.push(pod.workload())
    scene.servers[name] = await pod.serve(HTTP_PORT, apps.Hello(name, pod.host))


def _service_key(lab: Lab, name: str) -> str:
    return f"{lab.services[name].namespace}/{lab.services[name].hostname}"


async def _carries_data(stream: trio.SocketStream) -> bool:
    try:
        with trio.fail_after(_END_SECONDS):
            await stream.send_all(b"still there?")
            return bool(await stream.receive_some(64))
    except (OSError, trio.BrokenResourceError, trio.TooSlowError):
        return False


async def _end_of(stream: trio.SocketStream) -> str | None:
    with trio.move_on_after(_END_SECONDS):
        try:
            return "end of stream" if not await stream.receive_some(64) else "data came"
        except (OSError, trio.BrokenResourceError) as error:
            cause = error.__cause__
            return "reset" if isinstance(cause, ConnectionResetError) else str(cause or error)
    return None


async def _is_refused(pod: Pod, port: int) -> bool:
    """Whether the pod's own loopback, which no rule redirects, refuses this port."""
    try:
        with trio.fail_after(_END_SECONDS):
            stream = await pod.connect(SocketAddress(_LOOPBACK, port))
    except ConnectionRefusedError:
        return True
    except (OSError, trio.TooSlowError):
        return False
    await stream.aclose()
    return False


def _holds(pod: Pod, pid: int) -> int:
    """How many descriptors of a process are the pod's namespace or a socket in it."""
    base, inside = f"/proc/{pid}/fd", {f"socket:[{inode}]" for inode in pod.sockets()}
    inside.add(f"net:[{os.fstat(pod.host.netns.fileno()).st_ino}]")
    found = 0
    for name in os.listdir(base):
        with contextlib.suppress(OSError):  # closed meanwhile
            found += os.readlink(f"{base}/{name}") in inside
    return found


async def _others_served(scene: Scene) -> bool:
    """`sleep` still reaches `web-api`; that the chain now ends early is the programs' affair."""
    before = len(scene.servers[CHAIN[0]].peers)
    body, _ = await _ask(scene.lab.pods["sleep"], scene.lab.address_of(CHAIN[0]), _marker(scene))
    return body is not None and len(scene.servers[CHAIN[0]].peers) == before + 1


# ---------------------------------------------------------------- afterwards


def next_lines(lab: Lab) -> list[str]:
    """What to type while a kept demo is up."""
    mesh = "ztunnel-trio lab" if len(find_labs()) == 1 else f"ztunnel-trio lab --pid {os.getpid()}"
    web = CHAIN[0]
    return [
        "The mesh is up. In another terminal:",
        f"  {mesh} list                      # nodes, pods, services",
        f"  {mesh} call sleep {web}        # allowed",
        f"  {mesh} call client {web}       # refused, with the proxies' own words",
        f"  {mesh} policy list               # the policies, and the file they come from",
        f"  {mesh} policy delete {POLICY}",
        f"  {mesh} call client {web}       # now it is allowed",
        f"  {mesh} exec recommendation sh    # a shell in that pod's network",
        f"  {mesh} call node-1 127.0.0.1:15000 /config_dump",
        f"  tail -f {lab.directory}/node-*/proxy.log",
        "Ctrl-C takes it down.",
    ]
