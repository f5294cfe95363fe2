"""Addresses of workloads the mesh knows by hostname only: one resolver for the whole process.

It asks from the process's own namespace, with the process's own resolv.conf and hosts file, and never the
mesh. A name without trailing dot goes through the search list (resolv.conf(5)); A and AAAA are asked side by
side, and one of them failing does not matter if the other has addresses.

Answers are kept for as long as their TTL says, failures as their SOA says, in a bounded cache. Equal lookups
share one exchange: the first caller makes it, the others wait; if the first is cancelled, one of the others
takes over.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final

import trio

from ztunnel_trio.dns.forward import Budget, Forwarder, Via
from ztunnel_trio.dns.resolv_conf import ResolvConf
from ztunnel_trio.errors import PeerBrokeProtocol, Unavailable
from ztunnel_trio.model.address import IPAddress
from ztunnel_trio.observe.log import get_logger
from ztunnel_trio.wire.dns import (
    AAAA,
    A,
    FoundAddresses,
    Name,
    NotFound,
    encode_query,
    parse_name,
    read_addresses,
)

log = get_logger("state")

LOOKUPS: Final = 256  # exchanges with the resolvers at once; a further lookup fails
CACHE_ENTRIES: Final = 4096  # ztunnel src/config.rs, the resolver's cache_size
MAX_LITERAL_NDOTS: Final = 4  # hickory-resolver: an address has four labels


@dataclass(frozen=True, slots=True)
class _Question:
    name: Name
    type: int


@dataclass(frozen=True, slots=True)
class _Kept:
    result: FoundAddresses | NotFound
    expires_at: float


@dataclass(slots=True, eq=False)
class _Running:
    """An exchange others may wait for; it ends without a result if its task was cancelled."""

    finished: trio.Event
    result: FoundAddresses | NotFound | None = None


def candidates(hostname: str, conf: ResolvConf) -> list[Name]:
    """The absolute names to try for a hostname, in order, each once; labels count here, not dots."""
    name = parse_name(hostname)
    if hostname.endswith("."):
        return [name]
    suffixes = ([] if conf.domain is None else [conf.domain]) + list(conf.search)
    searched = [name + parse_name(suffix) for suffix in suffixes]
    tried = [name, *searched] if len(name) > conf.ndots else [*searched, name]
    return list(dict.fromkeys(tried))


@dataclass(slots=True, eq=False)
class HostResolver:
    """Resolves hostnames for routing; `forwarder` asks from the process's own namespace, without a mark."""

    forwarder: Forwarder
    hosts: Mapping[str, tuple[IPAddress, ...]]
    ipv6: bool = True
    entries: int = CACHE_ENTRIES
    clock: Callable[[], float] = trio.current_time
    budget: Budget = field(default_factory=lambda: Budget(LOOKUPS))
    _kept: OrderedDict[_Question, _Kept] = field(default_factory=OrderedDict, init=False)
    _running: dict[_Question, _Running] = field(default_factory=dict, init=False)

    async def resolve(self, hostname: str) -> tuple[IPAddress, ...] | None:
        """Every address of a name, IPv4 first; empty if the answer held none; None if the lookup failed."""
        conf = self.forwarder.conf
        literal = _literal(hostname) if conf.ndots <= MAX_LITERAL_NDOTS else None
        if literal is not None:
            return (literal,)
        listed = self._listed(hostname)
        if listed:
            return listed
        has_records = False
        failure = ""
        for name in candidates(hostname, conf):
            results = await self._both(name)
            found = tuple(ip for one in results if isinstance(one, FoundAddresses) for ip in one.addresses)
            if found:
                return found
            failures = [one for one in results if isinstance(one, NotFound)]
            if any(one.has_records for one in failures):
                has_records = True
                break
            failure = failures[0].text
        if has_records:
            return ()
        log.warning("dns lookup failed: %s: %s", hostname, failure)
        return None

    def _listed(self, hostname: str) -> tuple[IPAddress, ...]:
        """What the hosts file says, of the families asked for."""
        found = self.hosts.get(hostname.lower().removesuffix("."), ())
        return tuple(sorted((ip for ip in found if self.ipv6 or ip.version == 4), key=lambda ip: ip.version))

    async def _both(self, name: Name) -> list[FoundAddresses | NotFound]:
        """The answers for A and, if asked for, AAAA."""
        questions = [_Question(name, A), _Question(name, AAAA)][: 2 if self.ipv6 else 1]
        results: dict[_Question, FoundAddresses | NotFound] = {}

        async def look_up(question: _Question) -> None:
            results[question] = await self._look_up(question)

        async with trio.open_nursery() as nursery:
            for question in questions:
                nursery.start_soon(look_up, question)
        return [results[question] for question in questions]

    async def _look_up(self, question: _Question) -> FoundAddresses | NotFound:
        """From the cache, from whoever asks the same now, or from upstream."""
        while True:
            kept = self._kept.get(question)
            if kept is not None and kept.expires_at > self.clock():
                self._kept.move_to_end(question)
                return kept.result
            running = self._running.get(question)
            if running is None:
                return await self._ask_for_all(question)
            await running.finished.wait()
            if running.result is not None:
                return running.result

    async def _ask_for_all(self, question: _Question) -> FoundAddresses | NotFound:
        """Ask upstream, keep the answer, and wake whoever waits for the same."""
        running = self._running[question] = _Running(trio.Event())
        try:
            running.result = await self._ask(question)
            if running.result.ttl:
                self._keep(question, _Kept(running.result, self.clock() + running.result.ttl))
            return running.result
        finally:
            del self._running[question]
            running.finished.set()

    def _keep(self, question: _Question, kept: _Kept) -> None:
        self._kept[question] = kept
        self._kept.move_to_end(question)
        if len(self._kept) > self.entries:
            self._kept.popitem(last=False)

    async def _ask(self, question: _Question) -> FoundAddresses | NotFound:
        if not self.budget.take():
            return NotFound("too many lookups at once", 0)
        try:
            query = encode_query(0, question.name, question.type, edns=self.forwarder.conf.edns0)
            return read_addresses(await self.forwarder.exchange(query, Via.UDP_THEN_TCP))
        except (Unavailable, PeerBrokeProtocol) as error:
            return NotFound(str(error), 0)
        finally:
            self.budget.give_back()


def _literal(hostname: str) -> IPAddress | None:
    try:
        return ip_address(hostname)
    except ValueError:
        return None
