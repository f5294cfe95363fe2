"""The config dump: what each room knows, as one JSON text with sorted keys and two-space indent.

The dump of a large mesh is hundreds of megabytes, and everything in it lives on the loop's thread. So it is
made and sent in slices of a few items with a checkpoint between: it holds up nobody and is never whole in
memory. An item that goes away meanwhile is left out; each item is consistent in itself.
"""

import base64
import heapq
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Final, Protocol

import msgspec
import trio

from ztunnel_trio.certs.entries import CertificateState
from ztunnel_trio.mesh.document import (
    Json,
    clashes_document,
    policy_document,
    service_document,
    staged_document,
    workload_document,
)
from ztunnel_trio.mesh.mesh import Mesh
from ztunnel_trio.model.address import NamespacedHostname
from ztunnel_trio.model.certificate import load_certificate, to_pem
from ztunnel_trio.model.connection import InboundConnection
from ztunnel_trio.model.workload import WorkloadInfo
from ztunnel_trio.proxy.workload_proxies import Placement, PlacementState

SLICE_ITEMS: Final = 16  # a workload takes 0.1 ms
SLICE_SECONDS: Final = 0.002  # a service with many endpoints is a slice of its own
SORTED_AT_ONCE: Final = 2048
BLOCK: Final = 64  # keys
SEPARATOR: Final = "\x01"  # Kubernetes has names of printable characters only; any other is left out
PEM_COLUMNS: Final = 60  # as the reference wraps its PEM


@dataclass(frozen=True, slots=True)
class Whole:
    """A part made in one step, because it is small. `is_optional`: left out while there is nothing in it."""

    make: Callable[[], Json]
    is_optional: bool = False


@dataclass(frozen=True, slots=True)
class Listed:
    """An array. `keys` is asked once, for what nobody changes while it is read; `item` for each key in sorted
    order, None leaves it out.
    """

    keys: Callable[[], Iterable[str]]
    item: Callable[[str], Json]


Part = Whole | Listed


@dataclass(frozen=True, slots=True)
class ConfigDump:
    """The dump's top-level keys and what stands under them."""

    parts: Mapping[str, Part]

    async def begin(self) -> Callable[[Callable[[bytes], Awaitable[None]]], Awaitable[None]]:
        """Make the small parts now, so that their failure is still a 500; returns what sends the dump."""
        small = {name: part for name, part in self.parts.items() if isinstance(part, Whole)}
        made = {name: (part, part.make()) for name, part in small.items()}
        texts = {
            name: json_text(value) for name, (part, value) in made.items() if value or not part.is_optional
        }
        names = sorted(texts.keys() | (self.parts.keys() - small.keys()))
        await trio.lowlevel.checkpoint()

        async def send_all(send: Callable[[bytes], Awaitable[None]]) -> None:
            lead = b"{\n  "
            for name in names:
                part = self.parts[name]
                head = lead + json_text(name) + b": "
                lead = b",\n  "
                if isinstance(part, Listed):
                    await send(head)
                    await send_list(part, send)
                else:
                    await send(head + indented(texts[name], 1))
            await send(b"\n}" if names else b"{}")

        return send_all

    async def text(self) -> str:
        """The whole dump, for tests and small meshes."""
        pieces: list[bytes] = []

        async def collect(piece: bytes) -> None:
            pieces.append(piece)

        write = await self.begin()
        await write(collect)
        return b"".join(pieces).decode()


async def send_list(part: Listed, send: Callable[[bytes], Awaitable[None]]) -> None:
    """Send an array at the second level, a slice at a time."""
    lead, pieces, began = b"[\n    ", list[bytes](), time.perf_counter()
    for number, key in enumerate(await sorted_keys(part.keys()), start=1):
        value = part.item(key)
        if value is not None:
            pieces.append(lead + indented(json_text(value), 2))
            lead = b",\n    "
        if number % SLICE_ITEMS == 0 or time.perf_counter() - began > SLICE_SECONDS:
            await send(b"".join(pieces))
            pieces.clear()
            await trio.lowlevel.checkpoint()
            began = time.perf_counter()
    pieces.append(b"[]" if lead.startswith(b"[") else b"\n  ]")
    await send(b"".join(pieces))


async def sorted_keys(keys: Iterable[str]) -> Iterator[str]:
    """The keys in order, sorted in runs so that no step is long."""
    remaining = iter(keys)
    runs: list[list[str]] = []
    while run := sorted(islice(remaining, SORTED_AT_ONCE)):
        runs.append([SEPARATOR.join(run[at : at + BLOCK]) for at in range(0, len(run), BLOCK)])
        await trio.lowlevel.checkpoint()
    return heapq.merge(*map(names_of, runs))


def names_of(blocks: list[str]) -> Iterator[str]:
    """The keys of a run. As text in blocks, the garbage collector has a few strings to walk through."""
    for block in blocks:
        yield from block.split(SEPARATOR)


def json_text(value: Json) -> bytes:
    """Indented JSON with sorted keys."""
    return msgspec.json.format(msgspec.json.encode(value, order="sorted"), indent=2)


def indented(text: bytes, levels: int) -> bytes:
    """The text for a deeper place: JSON strings hold no raw line ends, so every one is layout."""
    return text.replace(b"\n", b"\n" + b"  " * levels)


# ------------------------------------------------------------------------------------------- the rooms


def mesh_parts(mesh: Mesh) -> dict[str, Part]:
    """`workloads` by uid, `services` by hostname, `policies` by resource name, `stagedServices` (named by
    workloads, described by nobody), `addressClashes`."""

    def workload(uid: str) -> Json:
        found = mesh.workload(uid)
        return None if found is None else workload_document(found)

    services: dict[str, NamespacedHostname] = {}

    def service_keys() -> Iterator[str]:
        services.clear()
        for one in list(mesh.services()):
            name = f"{one.hostname}\0{one.namespace}"  # hostnames repeat between namespaces
            services[name] = one.key
            yield name

    def service(name: str) -> Json:
        key = services.get(name)
        found = None if key is None else mesh.service(key)
        return None if found is None else service_document(found, mesh.endpoints(found.key))

    def policy(key: str) -> Json:
        found = mesh.policy(key)
        return None if found is None else policy_document(found)

    return {
        "workloads": Listed(mesh.uids, workload),
        "services": Listed(service_keys, service),
        "policies": Listed(mesh.policy_keys, policy),
        "stagedServices": Whole(lambda: staged_document(mesh.without_service())),
        "addressClashes": Whole(
            lambda: clashes_document(mesh.service_clashes(), mesh.workload_clashes()), is_optional=True
        ),
    }


class CertificateRoom(Protocol):
    """Where certificates are kept; `certs.keeper.Keeper` is one."""

    def dump(self) -> list[CertificateState]: ...


def certificates_part(keeper: CertificateRoom) -> Listed:
    """`certificates`, sorted by identity and pod."""
    states: dict[str, CertificateState] = {}

    def keys() -> list[str]:
        states.clear()
        states.update({str(state.key): state for state in keeper.dump()})
        return list(states)

    return Listed(keys, lambda key: certificate_document(states[key]))


def certificate_document(state: CertificateState) -> Json:
    """One key: its state, and the certificates when there are any, leaf first, roots apart.

    The pod is named where it has a certificate of its own.
    """
    held, pod = state.certificate, state.key.pod
    chain = () if held is None else (held.leaf_der, *held.intermediates_der)
    return {
        "identity": str(state.key.identity),
        **({} if pod is None else {"pod": {"uid": pod.uid, **info_document(pod.info)}}),
        "state": state.state,
        "certChain": [x509_document(der) for der in chain],
        "rootCerts": [x509_document(der) for der in (() if held is None else held.roots_der)],
    }


def x509_document(der: bytes) -> Json:
    """One certificate: base64 of its PEM text, decimal serial number, its lifetime."""
    parsed = load_certificate(der)
    return {
        "pem": base64.b64encode(to_pem(der, line_length=PEM_COLUMNS)).decode(),
        "serialNumber": str(parsed.serial_number),
        "validFrom": moment(parsed.not_valid_before_utc),
        "expirationTime": moment(parsed.not_valid_after_utc),
    }


def moment(when: datetime) -> str:
    """RFC 3339 in UTC, whole seconds."""
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def info_document(info: WorkloadInfo) -> dict[str, Json]:
    return {"name": info.name, "namespace": info.namespace, "serviceAccount": info.service_account}


def workload_state(states: Mapping[str, Placement | WorkloadInfo], *, with_connections: bool = True) -> Json:
    """`workloadState`: every pod by uid, whether its proxy is up, and its connections when it is."""
    document: dict[str, Json] = {}
    for uid, state in states.items():
        if isinstance(state, WorkloadInfo):
            document[uid] = {"state": PlacementState.PENDING.value, "info": info_document(state)}
        elif not state.is_own:
            entry: dict[str, Json] = {"state": state.state.value, "info": info_document(state.info)}
            if with_connections and state.state is PlacementState.UP:
                entry["connections"] = connections_document(state)
            document[uid] = entry
    return document


def connections_document(placement: Placement) -> Json:
    """The open connections of one workload; equal ones, streams of one tunnel to one port, are one."""
    listed = sorted(
        {(entry.connection, entry.host) for entry in placement.registry.inbound},
        key=lambda each: (str(each[0].source), each[1] or ""),
    )
    inbound: Sequence[Json] = [inbound_document(connection, host) for connection, host in listed]
    outbound: Sequence[Json] = [
        {
            "src": str(entry.source),
            "originalDst": str(entry.original),
            "actualDst": str(entry.actual),
            "protocol": entry.protocol.value,
        }
        for entry in placement.registry.outbound
    ]
    return {"inbound": inbound, "outbound": outbound}


def inbound_document(connection: InboundConnection, host: str | None) -> Json:
    return {
        "src": str(connection.source),
        "originalDst": host,
        "actualDst": str(connection.destination),
        "protocol": "TCP" if connection.identity is None else "HBONE",
    }
