"""A stand-in for SPIRE's agent: its three interfaces over one set of entries, and what can go wrong with it.

`entries` are the registered identities by what a workload is attested as: a Kubernetes service account (for
selectors), a network namespace (for processes), a pod's uid (for the Broker API), or the caller itself (for
the Workload API). Every workload gets a key and a certificate of its own. Streams live until their caller
goes, `end_streams`, or a refusal; every change of state is pushed as a whole state.
"""

import ssl
import tempfile
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import trio
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from ztunnel_trio.control import grpc
from ztunnel_trio.control.spiffe.broker import METADATA as BROKER_METADATA
from ztunnel_trio.control.spiffe.broker import PACKAGE, SUBSCRIBE_PATH
from ztunnel_trio.control.spiffe.delegated import BUNDLES_PATH, SVIDS_PATH
from ztunnel_trio.control.spiffe.workload_api import METADATA as WORKLOAD_METADATA
from ztunnel_trio.control.spiffe.workload_api import X509_SVID_PATH
from ztunnel_trio.facts.grpc import GrpcCode
from ztunnel_trio.facts.network import ALPN_H2
from ztunnel_trio.lab.ca import Status, bad_status
from ztunnel_trio.lab.pki import Authority, Leaf
from ztunnel_trio.lab.unix_server import serve_at
from ztunnel_trio.model.certificate import pem_blocks
from ztunnel_trio.model.identity import SCHEME
from ztunnel_trio.net.processes import netns_of
from ztunnel_trio.pb.messages import X509Svid, X509SvidResponse
from ztunnel_trio.pb.messages.spiffe.broker import (
    KubernetesObjectReference,
    SubscribeToX509SvidRequest,
    SubscribeToX509SvidResponse,
    WorkloadPidReference,
)
from ztunnel_trio.pb.messages.spiffe.broker import X509Svid as BrokeredSvid
from ztunnel_trio.pb.messages.spire.api.agent.delegatedidentity.v1 import (
    SubscribeToX509BundlesResponse,
    SubscribeToX509SviDsRequest,
    SubscribeToX509SviDsResponse,
    X509SvidWithKey,
)
from ztunnel_trio.pb.messages.spire.api.types import Spiffeid
from ztunnel_trio.pb.messages.spire.api.types import X509Svid as AgentSvid
from ztunnel_trio.supervise.watch import Watch

DELEGATE_SOCKET: Final = "admin.sock"
WORKLOAD_SOCKET: Final = "agent.sock"
BROKER_SOCKET: Final = "broker.sock"
_NOT_A_DELEGATE: Final = "caller not configured as an authorized delegate"
_NEITHER: Final = "must provide either selectors or non-zero PID, but not both"


@dataclass(frozen=True, slots=True)
class Account:
    """A Kubernetes service account: what the selectors `ns` and `sa` name."""

    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class InNetns:
    """Any process in this network namespace."""

    key: tuple[int, int]


@dataclass(frozen=True, slots=True)
class PodUid:
    """The pod of this uid."""

    uid: str


@dataclass(frozen=True, slots=True)
class AttestedCaller:
    """Whoever calls the Workload API."""


Subject = Account | InNetns | PodUid | AttestedCaller


@dataclass(frozen=True, slots=True)
class Subscribed:
    """One stream that was opened: over which interface, and for whom."""

    path: str
    subject: Subject | None


@dataclass(slots=True, eq=False)
class SpireAgent:
    """The agent and its knobs."""

    authority: Authority
    trust_domain: str = "cluster.local"
    entries: dict[Subject, list[str]] = field(default_factory=dict)
    lifetime: float = 3600.0
    delay: float = 0.0  # before the first state of a stream
    empty_first: bool = False  # the first state has no certificate
    is_silent: bool = False  # no state ever comes
    refuse: Status | None = None
    garbage: bytes | None = None  # instead of every state
    wrong_id: str | None = None  # the id in the message, and in it only
    foreign_key: bool = False  # a key that does not fit the certificate
    spares_callers: bool = False  # the Workload API works whatever these say
    federated: dict[str, Authority] = field(default_factory=dict)
    crls_der: list[bytes] = field(default_factory=list)
    opened: list[Subscribed] = field(default_factory=list)
    most_at_once: int = 0  # streams that waited for their first state at one time
    _opening: int = 0
    _issued: dict[tuple[Subject | None, str], Leaf] = field(default_factory=dict)
    _changed: dict[Subject | None, Watch[int]] = field(default_factory=dict)  # None: the bundles'
    _ended: trio.Event = field(default_factory=trio.Event)

    # -- what happens to it

    def register(self, subject: Subject, *identities: str) -> None:
        """Make entries: the subject is attested as these from now on."""
        self.entries[subject] = list(identities)
        self._tell()

    def withdraw(self, subject: Subject) -> None:
        """Remove a subject's entries."""
        self.entries.pop(subject, None)
        self._tell()

    def rotate(self, authority: Authority | None = None) -> None:
        """New certificates for everybody, of another authority if one is given."""
        self.authority = authority or self.authority
        self._issued.clear()
        self._tell()

    def rotate_one(self, subject: Subject) -> None:
        """New certificates for one subject."""
        for key in [key for key in self._issued if key[0] == subject]:
            del self._issued[key]
        self._tell(subject)

    def issued(self) -> list[Leaf]:
        """Every certificate given out since the last rotation, with its key."""
        return list(self._issued.values())

    def end_streams(self) -> None:
        """End every stream with status OK, as an agent that restarts in order does."""
        ended, self._ended = self._ended, trio.Event()
        ended.set()

    def _tell(self, *subjects: Subject | None) -> None:
        """Have the streams of these subjects say their state anew, or all streams."""
        for subject in subjects or list(self._changed):
            watch = self._watch(subject)
            watch.publish(watch.value + 1)

    def _watch(self, subject: Subject | None) -> Watch[int]:
        return self._changed.setdefault(subject, Watch(0))

    # -- serving

    @asynccontextmanager
    async def running(self, directory: Path, *, brokers: Sequence[str] = ()) -> AsyncGenerator[None, None]:
        """Listen on the three sockets in a directory for the body's time. `brokers` are the SPIFFE ids that
        may use the Broker API; without any its socket is not there.
        """
        async with trio.open_nursery() as nursery:
            delegate = {SVIDS_PATH: self._delegated, BUNDLES_PATH: self._bundles}
            await nursery.start(serve_at, directory / DELEGATE_SOCKET, delegate, None)
            await nursery.start(serve_at, directory / WORKLOAD_SOCKET, {X509_SVID_PATH: self._own}, None)
            if brokers:
                context = self._broker_context(brokers)
                handlers = {SUBSCRIBE_PATH: self._brokered}
                await nursery.start(serve_at, directory / BROKER_SOCKET, handlers, context)
            yield
            nursery.cancel_scope.cancel(reason="the agent is stopped")

    async def _delegated(self, call: grpc.ServerCall) -> None:
        request = SubscribeToX509SviDsRequest.parse(await call.receive() or b"")
        if bool(request.selectors) == bool(request.pid):
            raise bad_status(Status(GrpcCode.INVALID_ARGUMENT, _NEITHER))
        subject = (
            _process(request.pid)
            if request.pid
            else _account([(each.type, each.value) for each in request.selectors])
        )

        def state() -> bytes:
            found = [
                X509SvidWithKey(
                    x509_svid=AgentSvid(
                        cert_chain=_ders(leaf.chain_pem),
                        id=Spiffeid(*_halves(self.wrong_id or identity)),
                        expires_at=int(_not_after(leaf)),
                    ),
                    x509_svid_key=_key_der(leaf),
                )
                for identity, leaf in self._svids(subject)
            ]
            return bytes(SubscribeToX509SviDsResponse(x509_svids=found))

        await self._stream(call, SVIDS_PATH, subject, state, bytes(SubscribeToX509SviDsResponse()))

    async def _bundles(self, call: grpc.ServerCall) -> None:
        await call.receive()

        def state() -> bytes:
            found = {f"{SCHEME}{name}": _bundle(one) for name, one in self.federated.items()}
            found[f"{SCHEME}{self.trust_domain}"] = _bundle(self.authority)
            return bytes(SubscribeToX509BundlesResponse(ca_certificates=found))

        if self.refuse is not None:
            raise bad_status(self.refuse)
        await self._push(call, None, state, self.garbage)

    async def _own(self, call: grpc.ServerCall) -> None:
        await call.receive()
        if not WORKLOAD_METADATA.items() <= call.metadata.items():
            raise bad_status(Status(GrpcCode.INVALID_ARGUMENT, "security header missing from request"))

        def state() -> bytes:
            svids = [
                X509Svid(*self._fields(identity, leaf, is_spared=self.spares_callers))
                for identity, leaf in self._svids(AttestedCaller())
            ]
            return bytes(
                X509SvidResponse(svids=svids, crl=self.crls_der, federated_bundles=self._federated())
            )

        await self._stream(call, X509_SVID_PATH, AttestedCaller(), state, bytes(X509SvidResponse()))

    async def _brokered(self, call: grpc.ServerCall) -> None:
        request = SubscribeToX509SvidRequest.parse(await call.receive() or b"")
        if not BROKER_METADATA.items() <= call.metadata.items():
            raise bad_status(Status(GrpcCode.INVALID_ARGUMENT, "security header missing from request"))
        subject = _referenced(request)

        def state() -> bytes:
            svids = [BrokeredSvid(*self._fields(identity, leaf)) for identity, leaf in self._svids(subject)]
            return bytes(
                SubscribeToX509SvidResponse(
                    svids=svids, crl=self.crls_der, federated_bundles=self._federated()
                )
            )

        await self._stream(call, SUBSCRIBE_PATH, subject, state, bytes(SubscribeToX509SvidResponse()))

    async def _stream(
        self,
        call: grpc.ServerCall,
        path: str,
        subject: Subject | None,
        state: Callable[[], bytes],
        empty: bytes,
    ) -> None:
        """One stream of certificates, as the knobs are set."""
        self.opened.append(Subscribed(path, subject))
        if self.spares_callers and subject == AttestedCaller():
            await self._push(call, subject, state)
            return
        if self.refuse is not None:
            raise bad_status(self.refuse)
        self._opening += 1
        self.most_at_once = max(self.most_at_once, self._opening)
        try:
            await trio.sleep(self.delay)
            if self.is_silent:
                await self._ended.wait()
                return
            if self.empty_first:
                await call.send(empty)
        finally:
            self._opening -= 1
        await self._push(call, subject, state, self.garbage)

    async def _push(
        self,
        call: grpc.ServerCall,
        subject: Subject | None,
        state: Callable[[], bytes],
        garbage: bytes | None = None,
    ) -> None:
        """The state now, and after every change, until the streams are ended."""
        ended = self._ended
        changed = self._watch(subject)
        version = changed.version
        async with trio.open_nursery() as nursery:

            async def end() -> None:
                await ended.wait()
                nursery.cancel_scope.cancel(reason="streams ended")

            nursery.start_soon(end)
            while True:
                await call.send(state() if garbage is None else garbage)
                version, _ = await changed.newer_than(version)

    # -- certificates

    def _svids(self, subject: Subject | None) -> list[tuple[str, Leaf]]:
        if subject is None or subject not in self.entries:
            return []
        return [(identity, self._leaf(subject, identity)) for identity in self.entries[subject]]

    def _leaf(self, subject: Subject | None, identity: str) -> Leaf:
        leaf = self._issued.get((subject, identity))
        if leaf is None:
            leaf = self._issued[subject, identity] = self.authority.leaf(identity, lifetime=self.lifetime)
        return leaf

    def _fields(
        self, identity: str, leaf: Leaf, *, is_spared: bool = False
    ) -> tuple[str, bytes, bytes, bytes]:
        is_foreign = self.foreign_key and not is_spared
        key = _key_der(self.authority.leaf(identity) if is_foreign else leaf)
        named = identity if is_spared else self.wrong_id or identity
        return named, b"".join(_ders(leaf.chain_pem)), key, _bundle(self.authority)

    def _federated(self) -> dict[str, bytes]:
        return {f"{SCHEME}{name}": _bundle(one) for name, one in self.federated.items()}

    def _broker_context(self, brokers: Sequence[str]) -> ssl.SSLContext:
        """Mutual TLS with a certificate of the agent's own; unknown brokers fail in the handshake's end."""
        leaf = self.authority.leaf(f"{SCHEME}{self.trust_domain}/spire/agent/lab")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=self.authority.root_pem)
        context.set_alpn_protocols([ALPN_H2])
        with tempfile.NamedTemporaryFile("w") as file:
            file.write(leaf.chain_pem + leaf.key_pem)
            file.flush()
            context.load_cert_chain(file.name)
        return context


def _referenced(request: SubscribeToX509SvidRequest) -> Subject | None:
    """Whom a reference of the Broker API names.

    Raises:
        BadStatus: it is missing or of an unknown type.
    """
    found = None if request.reference is None else request.reference.reference
    prefix = f"type.googleapis.com/{PACKAGE}."
    match None if found is None else found.type_url.removeprefix(prefix):
        case "WorkloadPIDReference" if found is not None:
            return _process(WorkloadPidReference.parse(found.value).pid)
        case "KubernetesObjectReference" if found is not None:
            return PodUid(KubernetesObjectReference.parse(found.value).uid)
        case _:
            raise bad_status(Status(GrpcCode.INVALID_ARGUMENT, "WORKLOAD_REFERENCE_INVALID"))


def _process(pid: int) -> Subject | None:
    """A process by where it is; None when there is none."""
    netns = netns_of(pid)
    return None if netns is None else InNetns(netns)


def _account(selectors: Sequence[tuple[str, str]]) -> Subject:
    facts = dict(value.split(":", 1) for kind, value in selectors if kind == "k8s")
    return Account(facts.get("ns", ""), facts.get("sa", ""))


def _ders(pem: str) -> list[bytes]:
    return [der for _, der in pem_blocks(pem)]


def _bundle(authority: Authority) -> bytes:
    return b"".join(_ders(authority.root_pem))


def _key_der(leaf: Leaf) -> bytes:
    key = serialization.load_pem_private_key(leaf.key_pem.encode(), None)
    return key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _not_after(leaf: Leaf) -> float:
    return x509.load_pem_x509_certificate(leaf.certificate_pem.encode()).not_valid_after_utc.timestamp()


def _halves(identity: str) -> tuple[str, str]:
    """A SPIFFE id as trust domain and path."""
    trust_domain, _, path = identity.removeprefix(SCHEME).partition("/")
    return trust_domain, f"/{path}"
