"""What was seen of a call, and whether it bears out what a mesh promises. Pure: evidence in, findings out.

Nothing here knows how the lab was configured beyond who was to call whom: addresses come from the server's
reply, identities and verdicts from the proxies' log lines, encryption from the captured packets.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from ztunnel_trio.facts.network import HBONE_PORT
from ztunnel_trio.lab.capture import Activity
from ztunnel_trio.lab.proxy_log import LogLine
from ztunnel_trio.model.address import IPAddress

_DECIDED_BY: Final = re.compile(r"denied by: (\S+)")


@dataclass(frozen=True, slots=True)
class EvidenceParty:
    """One end of a hop, as Kubernetes would tell it."""

    name: str
    namespace: str
    node: str
    ip: IPAddress
    identity: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HopEvidence:
    """Everything seen of one hop. `reached` are the client addresses the server's program saw meanwhile."""

    caller: EvidenceParty
    callee: EvidenceParty
    port: int  # the callee's program listens there
    reached: Sequence[str]
    error: str | None  # what the caller's program got instead of an answer
    outbound: LogLine | None  # the access line of the caller's proxy
    inbound: LogLine | None  # and of the callee's
    wire: Sequence[Activity]
    in_clear: bool  # the payload's marker was seen on the fabric


@dataclass(frozen=True, slots=True)
class Finding:
    """One promise and whether the evidence bears it out."""

    text: str
    kept: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """One hop, told."""

    title: str
    path: str
    server_saw: str
    wire: str
    verdict: str
    findings: Sequence[Finding] = field(default_factory=tuple)

    @property
    def kept(self) -> bool:
        return all(finding.kept for finding in self.findings)


def tell_allowed(hop: HopEvidence) -> Story:
    """A hop between two pods of the mesh that nothing forbids."""
    return _story(
        hop,
        [
            Finding("the caller's program got its answer", hop.error is None),
            Finding(
                f"the server's program saw the caller's own address {hop.caller.ip}",
                list(hop.reached) == [str(hop.caller.ip)],
            ),
            Finding("the server's proxy proved the caller's identity", _source_proved(hop)),
            Finding("the caller's proxy proved the server's identity", _destination_proved(hop)),
            Finding("every byte between them was TLS 1.3 to port 15008", _is_sealed(hop)),
            Finding("the payload was never seen on the wire", not hop.in_clear),
            Finding("both proxies logged a connection without error", _logged_well(hop)),
        ],
    )


def tell_refused(hop: HopEvidence, policy: str) -> Story:
    """A hop that a policy, named `namespace/name`, has to refuse."""
    return _story(
        hop,
        [
            Finding("the caller's program got no answer", hop.error is not None),
            Finding("the server's program saw no connection", not hop.reached),
            Finding("the server's proxy proved the caller's identity", _source_proved(hop)),
            Finding(f"the policy that decided is {policy}", decided_by(hop) == policy),
            Finding("every byte between them was TLS 1.3 to port 15008", _is_sealed(hop)),
            Finding("the payload was never seen on the wire", not hop.in_clear),
        ],
    )


def tell_plain(hop: HopEvidence) -> Story:
    """A hop from outside the mesh: allowed, unproved and in clear, which shows what the socket can see."""
    return _story(
        hop,
        [
            Finding("the caller's program got its answer", hop.error is None),
            Finding("the server's proxy proved no identity", not _source_identity(hop)),
            Finding("the packet socket saw the payload in clear", hop.in_clear),
        ],
    )


def decided_by(hop: HopEvidence) -> str | None:
    """The policy the server's proxy names as the one that refused."""
    found = _DECIDED_BY.search(hop.inbound.get("error")) if hop.inbound else None
    return found[1] if found else None


def _story(hop: HopEvidence, findings: Sequence[Finding]) -> Story:
    return Story(
        title=f"{_name(hop.caller)} → {_name(hop.callee)}",
        path=_path(hop),
        server_saw=_source_identity(hop) or "nobody (no identity)",
        wire=_wire_text(hop),
        verdict=_verdict(hop),
        findings=findings,
    )


def _name(party: EvidenceParty) -> str:
    return party.name if party.namespace in ("default", "") else f"{party.namespace}/{party.name}"


def _path(hop: HopEvidence) -> str:
    ways = {f"{one.flow.client.ip} → {one.flow.server}" for one in hop.wire}
    place = f"{hop.caller.node or 'outside'} → {hop.callee.node}"
    target = hop.outbound.get("dst.hbone_addr") if hop.outbound else ""
    return f"{place}; {', '.join(sorted(ways)) or 'nothing on the wire'}" + (
        f"; HBONE to {target}" if target else ""
    )


def _wire_text(hop: HopEvidence) -> str:
    if not hop.wire:
        return "nothing seen"
    records = sum(one.application_records for one in hop.wire)
    size = sum(one.payload_bytes for one in hop.wire)
    kind = f"TLS 1.3, {records} encrypted records" if _is_sealed(hop) else "not encrypted"
    return f"{kind}, {size} bytes; payload {'SEEN IN CLEAR' if hop.in_clear else 'never seen'}"


def _verdict(hop: HopEvidence) -> str:
    if hop.error is None:
        return "allowed"
    if policy := decided_by(hop):
        return f"refused by policy {policy}"
    return f"failed: {hop.error}"


def _source_identity(hop: HopEvidence) -> str:
    return hop.inbound.get("src.identity") if hop.inbound else ""


def _source_proved(hop: HopEvidence) -> bool:
    return _source_identity(hop) == hop.caller.identity


def _destination_proved(hop: HopEvidence) -> bool:
    return hop.outbound is not None and hop.outbound.get("dst.identity") == hop.callee.identity


def _logged_well(hop: HopEvidence) -> bool:
    return all(line is not None and not line.get("error") for line in (hop.outbound, hop.inbound))


def _is_sealed(hop: HopEvidence) -> bool:
    ways = [one.flow for one in hop.wire]
    return bool(ways) and all(flow.is_tls13 and flow.server.port == HBONE_PORT for flow in ways)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeletionEvidence:
    """A pod before and after its deletion."""

    pod: str
    connection_lived: bool  # it carried bytes both ways just before
    connection_end: str | None  # what the client's socket gave afterwards; None: it still stands
    seconds: float
    ports_before: Sequence[int]
    ports_after: Sequence[int]
    refused: Sequence[int]  # of the proxy's ports, those that refuse a connection afterwards
    acknowledged: str | None  # the proxy's answer to the agent
    held_before: int  # descriptors of the proxy that are the pod's namespace or a socket in it
    held_after: int
    mentioned: bool | None  # whether the proxy's dump still names it; None: it could not be read
    others_served: bool  # another pod's call still works


def tell_deletion(seen: DeletionEvidence, proxy_ports: Sequence[int]) -> list[Finding]:
    """A deleted pod: its listeners gone at once, its connections cut, nothing left behind."""
    listened = [port for port in proxy_ports if port in seen.ports_before]
    left = [port for port in proxy_ports if port in seen.ports_after]
    return [
        Finding(
            f"before: the proxy listened in {seen.pod} on {_ports(listened)}",
            set(proxy_ports) == set(listened),
        ),
        Finding("before: a connection to it carried data", seen.connection_lived),
        Finding(
            f"the proxy acknowledged the deletion ({seen.acknowledged or 'without error'})",
            seen.acknowledged == "",
        ),
        Finding(
            f"that connection: {seen.connection_end or 'still stands'} after {seen.seconds * 1000:.0f} ms",
            seen.connection_end is not None,
        ),
        Finding(f"after: it listens on {_ports(left)}", not left),
        Finding(f"after: {_ports(seen.refused)} refuse connections", set(proxy_ports) <= set(seen.refused)),
        Finding(
            f"after: of {seen.held_before} descriptors in the pod the proxy still holds {seen.held_after}",
            seen.held_before > 0 and seen.held_after == 0,
        ),
        Finding("after: the proxy's config dump does not know it", seen.mentioned is False),
        Finding("the other pods are served as before", seen.others_served),
    ]


def _ports(ports: Sequence[int]) -> str:
    return ", ".join(str(port) for port in sorted(ports)) or "nothing"
