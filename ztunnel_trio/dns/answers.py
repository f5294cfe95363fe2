"""What one workload's questions are answered: by the mesh at once, else by the resolver upstream.

Whoever asks is the workload the server was made for. What the mesh answers is encoded once and kept until the
mesh's revision changes; the budget of queries in flight bounds what waits for somebody else, over it the
answer is SERVFAIL.
"""

import logging
from collections import OrderedDict
from dataclasses import dataclass, field
from random import Random
from typing import Final

import trio

from ztunnel_trio.decide.answer import (
    Addresses,
    Empty,
    Forward,
    NoAddress,
    Verdict,
    answer,
    is_localhost,
)
from ztunnel_trio.dns.forward import Budget, Forwarder, Via
from ztunnel_trio.dns.settings import DnsMetrics, DnsSettings
from ztunnel_trio.errors import PeerBrokeProtocol, Unavailable
from ztunnel_trio.live_mesh import LiveMesh
from ztunnel_trio.model.address import IPAddress
from ztunnel_trio.model.workload import Workload, WorkloadInfo
from ztunnel_trio.wire.dns import (
    AAAA,
    UDP_LIMIT,
    A,
    EncodedAnswer,
    FoundAddresses,
    OtherOperation,
    Query,
    Rcode,
    Request,
    Unanswerable,
    answer_count,
    encode_answer,
    encode_query,
    error_reply,
    parse_name,
    rcode_of,
    read_addresses,
    read_request,
    type_text,
)

log = logging.getLogger("ztunnel::dns::server")
access_log = logging.getLogger("dns")

UNKNOWN: Final = "unknown"


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """What a question came to: the verdict and, if the mesh answers, the answer encoded."""

    verdict: Verdict
    encoded: EncodedAnswer | None
    labels: tuple[str, ...]


@dataclass(slots=True, eq=False)
class KeptAnswers:
    """Answers by everything in a query that shapes them, of one revision of the mesh; bounded."""

    most: int
    revision: int = -1
    client: Workload | None = None
    kept: OrderedDict[tuple[object, ...], KeptAnswer] = field(default_factory=OrderedDict)

    def get(self, key: tuple[object, ...]) -> KeptAnswer | None:
        found = self.kept.get(key)
        if found is not None:
            self.kept.move_to_end(key)
        return found

    def put(self, key: tuple[object, ...], value: KeptAnswer) -> None:
        if len(self.kept) >= self.most:
            self.kept.popitem(last=False)
        self.kept[key] = value

    def start_over(self, revision: int, client: Workload | None) -> None:
        self.revision, self.client = revision, client
        self.kept.clear()


class NameAnswers:
    """The answers of one workload's name server."""

    def __init__(
        self,
        *,
        live: LiveMesh,
        client: WorkloadInfo,
        forwarder: Forwarder,
        settings: DnsSettings,
        metrics: DnsMetrics,
        rng: Random,
        budget: Budget,
    ) -> None:
        self.budget = budget
        self._live = live
        self._info = client
        self._forwarder = forwarder
        self._settings = settings
        self._metrics = metrics
        self._rng = rng
        self._answers = KeptAnswers(settings.kept_answers)

    async def resolve(self, name: str, ipv6: bool) -> list[IPAddress]:
        """The addresses of a name as this workload would be told them, none if there are none."""
        client = await self._client()
        if client is None:
            return []
        record_type = AAAA if ipv6 else A
        try:
            query = encode_query(0, parse_name(name), record_type, edns=True)
        except PeerBrokeProtocol:
            return []
        request = read_request(query)
        if not isinstance(request, Query):
            return []
        kept = self._decide(request, client, "udp", UDP_LIMIT)
        self._metrics.dns_request(kept.labels)
        self._record(request, client, kept.verdict)
        match kept.verdict:
            case Addresses(addresses=addresses):
                return self._rng.sample(addresses, len(addresses))
            case Empty():
                return []
            case Forward():
                return await self._resolve_upstream(query, request, kept.labels, client)

    def now(self, request: Request, protocol: str, limit: int) -> bytes | None:
        """The answer, if nobody has to be waited for."""
        if isinstance(request, Unanswerable):
            return request.reply
        client = self._client_now()
        if client is None or isinstance(request, OtherOperation):
            return None
        kept = self._decide(request, client, protocol, limit)
        if kept.encoded is None:
            return None
        self._metrics.dns_request(kept.labels)
        self._record(request, client, kept.verdict)
        return kept.encoded.message(request.id, self._rng)

    async def later(
        self, message: bytes, request: Query | OtherOperation, protocol: str, via: Via, limit: int
    ) -> bytes:
        """The answer of whoever knows it: the mesh once it knows the client, else the resolver upstream."""
        client = await self._client()
        if client is None:
            log.debug("unknown source: %s", self._info)
            return self.refuse(request, protocol)
        reply = self.now(request, protocol, limit)
        if reply is not None:
            return reply
        labels = _labels(request, protocol, client)
        self._metrics.dns_request(labels)
        return await self._forward(message, request, via, labels, client)

    def refuse(self, request: Query | OtherOperation, protocol: str) -> bytes:
        """SERVFAIL: the client is not known, or too much is in flight."""
        self._metrics.dns_request(_labels(request, protocol, self._client_now()))
        return error_reply(request, Rcode.SERVFAIL)

    async def _forward(
        self,
        message: bytes,
        request: Query | OtherOperation,
        via: Via,
        labels: tuple[str, ...],
        client: Workload,
    ) -> bytes:
        self._metrics.dns_upstream_request(labels)
        began = trio.current_time()
        try:
            reply = await self._forwarder.exchange(message, via)
        except Unavailable as error:
            self._metrics.dns_upstream_failure(labels)
            self._write(request, client, f"forwarding failed ({error})", 0)
            return error_reply(request, Rcode.SERVFAIL)
        finally:
            self._metrics.dns_upstream_duration(labels, trio.current_time() - began)
        count = answer_count(reply)
        if rcode_of(reply) or (not count and isinstance(request, Query)):
            self._metrics.dns_upstream_failure(labels)
            self._write(request, client, f"forwarding failed (response code {rcode_of(reply)})", 0)
        else:
            self._write(request, client, "forwarded", count)
        return reply

    async def _resolve_upstream(
        self, query: bytes, request: Query, labels: tuple[str, ...], client: Workload
    ) -> list[IPAddress]:
        if not self.budget.take():
            return []
        try:
            reply = await self._forward(query, request, Via.UDP_THEN_TCP, labels, client)
            found = read_addresses(reply)
        except PeerBrokeProtocol as error:
            log.debug("upstream: %s", error)
            return []
        finally:
            self.budget.give_back()
        return list(found.addresses) if isinstance(found, FoundAddresses) else []

    def _decide(self, query: Query, client: Workload, protocol: str, limit: int) -> KeptAnswer:
        """What the mesh says, encoded; from the answers kept if the same was asked of the same mesh."""
        key = (query.question, query.edns, query.flags, protocol)
        kept = self._answers.get(key)
        if kept is not None:
            return kept
        verdict: Verdict = Forward()
        if query.type in (A, AAAA):
            names, version = self._settings.names, 4 if query.type == A else 6
            verdict = answer(query.host, version=version, client=client, mesh=self._live.mesh, settings=names)
            for note in verdict.notes:
                log.debug("%s", note)
        elif is_localhost(query.host):
            verdict = Empty(NoAddress.NONE)
        encoded = None
        if isinstance(verdict, Addresses):
            alias_of = None if verdict.alias_of is None else parse_name(verdict.alias_of)
            encoded = encode_answer(query, verdict.addresses, alias_of=alias_of, limit=limit)
        elif isinstance(verdict, Empty):
            encoded = encode_answer(query, (), limit=limit)
        kept = KeptAnswer(verdict, encoded, _labels(query, protocol, client))
        self._answers.put(key, kept)
        return kept

    def _client_now(self) -> Workload | None:
        """The workload served, if the mesh knows it; what was kept of an older mesh is forgotten."""
        answers, mesh = self._answers, self._live.mesh
        if answers.revision != mesh.revision:
            answers.start_over(mesh.revision, mesh.local_workload(self._info))
        return answers.client

    async def _client(self) -> Workload | None:
        """The workload served, waiting for the mesh to know it."""
        client = self._client_now()
        if client is not None:
            return client
        await self._live.local_workload(self._info, seconds=self._settings.local_workload_seconds)
        return self._client_now()

    def _record(self, query: Query, client: Workload, verdict: Verdict) -> None:
        """The log line of an answer of the mesh."""
        match verdict:
            case Addresses(addresses=addresses, alias_of=alias):
                self._write(query, client, "success", len(addresses) + (alias is not None))
            case Empty(why=why):
                self._write(query, client, why.value, 0)
            case Forward():
                pass  # has its line when the answer is there

    def _write(self, request: Query | OtherOperation, client: Workload, result: str, endpoints: int) -> None:
        if not access_log.isEnabledFor(logging.DEBUG):
            return
        known = request if isinstance(request, Query) else None
        fields = {
            "src.workload": client.name,
            "src.namespace": client.namespace,
            "query": type_text(known.type) if known else UNKNOWN,
            "domain": f"{known.host}." if known else UNKNOWN,
            "result": result,
            "endpoints": endpoints,
        }
        access_log.debug("", extra={"fields": fields})


def _labels(request: Query | OtherOperation, protocol: str, client: Workload | None) -> tuple[str, ...]:
    """The labels of `DnsMetrics`, in their order."""
    record_type = type_text(request.type).lower() if isinstance(request, Query) else UNKNOWN
    service = (client and client.canonical_name) or UNKNOWN
    revision = (client and client.canonical_revision) or UNKNOWN
    return record_type, protocol, service, revision
