"""The workloads of the mesh: by uid, address, hostname, and on this node by account.

Theory of operation: a workload nobody asked about is a *record*, a few bytes under its uid: the numbers of
its kind and its node's locality, its addresses and its name. Its *kind* is what all workloads of a deployment
share, its services among it. Both are numbered and counted, and go with their last workload. The garbage
collector therefore sees one object a deployment, not one a workload. A `Workload` is made of its record on
first use and kept in a cache of bounded size.

Where several workloads share an address or a hostname, a fixed rule says which one is found, whatever came
first: pods, then HBONE, then the smallest uid (decision 0011).
"""

from collections.abc import Callable, Hashable, Iterator
from typing import Final, NamedTuple, TypeVar

from ztunnel_trio.mesh.clashes import Claim, Clashes
from ztunnel_trio.mesh.endpoints import ServiceEndpoints
from ztunnel_trio.mesh.entries import NodeLocality, WorkloadEntry, build_workload
from ztunnel_trio.mesh.keys import AddressKey, address_key, packed_key
from ztunnel_trio.mesh.kinds import BalancingFacts, KnownKind
from ztunnel_trio.mesh.numbered import Numbered
from ztunnel_trio.mesh.records import (
    HEAD,
    block_of,
    join_addresses,
    name_of,
    name_tail,
    pack_head,
    split_addresses,
    unpack_head,
)
from ztunnel_trio.model.address import NamespacedHostname, NetworkAddress
from ztunnel_trio.model.workload import Workload, WorkloadInfo

WORKLOADS_BUILT: Final = 8192  # values kept at most; about 1.5 KiB each

K = TypeVar("K", bound=Hashable)

Account = tuple[str, str]
"""Namespace and service account."""


_POD: Final = "//Pod/"  # istiod: every pod's uid has it, nothing else does


class Workloads:
    """The store. `endpoints` gives those of a service, also of one not known yet; `forget` is told of those
    that may be mentioned by nobody any more."""

    def __init__(
        self,
        local_node: str | None,
        endpoints: Callable[[NamespacedHostname], ServiceEndpoints],
        forget: Callable[[ServiceEndpoints], None],
        built_at_most: int = WORKLOADS_BUILT,
    ) -> None:
        self.local_node = local_node
        self.built_at_most = built_at_most
        self.clashes = Clashes(self._claimants)
        self._endpoints = endpoints
        self._forget = forget
        self._records: dict[str, bytes] = {}
        self._kinds: Numbered[bytes | Workload, KnownKind] = Numbered()
        self._localities: Numbered[tuple[str, str, str, str], NodeLocality] = Numbered()
        self._by_address: dict[str, dict[AddressKey, str | tuple[str, ...]]] = {}
        self._by_hostname: dict[str, dict[str, None]] = {}
        self._local: dict[Account, dict[str, None]] = {}
        self._built: dict[str, Workload] = {}

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, uid: str) -> bool:
        return uid in self._records

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    # change

    def put(self, entry: WorkloadEntry) -> "tuple[KnownKind, Replaced | None]":
        """Take a workload in place of the one of its uid, if there was one; its kind, and what that was.

        One that has not changed is left as it is.
        """
        uid, name, addresses, where, kind = entry
        kinds, localities = self._kinds, self._localities
        number = kinds.number(kind.key)
        if number is None:
            number = kinds.add(kind.key, KnownKind(kind, self._endpoints))
        known = kinds[number]
        at_node = localities.number(where.key)
        if at_node is None:
            at_node = localities.add(where.key, where)
        block = addresses[0] if len(addresses) == 1 else join_addresses(addresses)
        record = pack_head(number, at_node, len(block)) + block + name_tail(uid, name)
        there = self._records.get(uid)
        if there == record:
            return known, Replaced(known, where, self._is_local(where), is_same=True)
        kinds.holders[number] += 1
        localities.holders[at_node] += 1
        stays = there is not None and self._stays(there, known, block)
        replaced = None if there is None else self._take_out(uid, there, with_addresses=not stays)
        self._records[uid] = record
        known.add_endpoint(uid)
        if known.indexed and addresses and not stays:
            self._index(known.network, uid, addresses)
        if known.hostname:
            self._by_hostname.setdefault(known.hostname, {})[uid] = None
        if self.local_node is None or self.local_node == where.node:
            self._local.setdefault(known.account, {})[uid] = None
        if replaced is not None:
            self._forget_unmentioned(replaced)
        return known, replaced

    def remove(self, uid: str) -> "Replaced | None":
        """Take a workload out of every index; None if there is none of that uid."""
        record = self._records.pop(uid, None)
        if record is None:
            return None
        removed = self._take_out(uid, record)
        self._forget_unmentioned(removed)
        return removed

    def _index(self, network: str, uid: str, addresses: tuple[bytes, ...]) -> None:
        keys = self._by_address.get(network)
        if keys is None:
            keys = self._by_address[network] = {}
        for packed in addresses:
            key = int.from_bytes(packed, "big") if len(packed) == 4 else packed  # packed_key, in place
            found = keys.setdefault(key, uid)
            if found is not uid:
                keys[key] = _with(found, uid)
                self.clashes.touch((network, key))

    def _stays(self, record: bytes, kind: KnownKind, block: bytes) -> bool:
        """Whether a workload keeps its place in the index of addresses."""
        number, _, length = unpack_head(record)
        before = self._kinds[number]
        return (
            length > 0
            and before.indexed
            and kind.indexed
            and before.network == kind.network
            and block_of(record, length) == block
        )

    def _take_out(self, uid: str, record: bytes, *, with_addresses: bool = True) -> "Replaced":
        """Take what a record says out of every index."""
        self._built.pop(uid, None)
        number, at_node, length = unpack_head(record)
        kind, where = self._kinds[number], self._localities[at_node]
        kind.withdraw_endpoint(uid)
        if with_addresses and kind.indexed and length:
            self._remove_addresses(kind.network, uid, split_addresses(block_of(record, length)))
        if kind.hostname:
            _discard(self._by_hostname, kind.hostname, uid)
        is_local = self._is_local(where)
        if is_local:
            _discard(self._local, kind.account, uid)
        self._localities.release(at_node)
        is_last = self._kinds.release(number) is not None
        if is_last:
            for one, _ in kind.endpoints:
                one.kinds -= 1
        return Replaced(kind, where, is_local, is_last_of_kind=is_last)

    def _forget_unmentioned(self, replaced: "Replaced") -> None:
        """Forget the services only a workload that is gone has named."""
        if replaced.is_last_of_kind:
            for one, _ in replaced.kind.endpoints:
                self._forget(one)

    def _is_local(self, where: NodeLocality) -> bool:
        return self.local_node is None or self.local_node == where.node

    def _remove_addresses(self, network: str, uid: str, addresses: tuple[bytes, ...]) -> None:
        keys = self._by_address[network]
        for packed in addresses:
            key = packed_key(packed)
            there = keys.get(key)
            if there == uid:
                del keys[key]
            elif isinstance(there, tuple):
                left = tuple([other for other in there if other != uid])
                keys[key] = left if len(left) > 1 else left[0]
                self.clashes.touch((network, key))
        if not keys:
            del self._by_address[network]

    # lookup

    def get(self, uid: str) -> Workload | None:
        """The workload of a uid."""
        built = self._built.get(uid)
        if built is not None:
            return built
        workload = self.build(uid)
        if workload is not None:
            if len(self._built) >= self.built_at_most:
                self._built.pop(next(iter(self._built)))  # the oldest: a value in use is soon made again
            self._built[uid] = workload
        return workload

    def build(self, uid: str) -> Workload | None:
        """The workload of a uid, made anew and not kept."""
        record = self._records.get(uid)
        if record is None:
            return None
        number, at_node, length = unpack_head(record)
        where = self._localities[at_node]
        end = HEAD.size + length
        return build_workload(
            self._kinds[number].prototype,
            uid,
            name_of(uid, record[end:]),
            split_addresses(block_of(record, length)),
            where,
        )

    def balancing_facts(self, uid: str) -> BalancingFacts | None:
        """The few facts load balancing compares, from the record."""
        record = self._records.get(uid)
        if record is None:
            return None
        number, at_node, length = unpack_head(record)
        return BalancingFacts(self._kinds[number].prototype, self._localities[at_node], length > 0)

    def at(self, address: NetworkAddress) -> Workload | None:
        """The best workload of an address: pods first, then HBONE, then the smallest uid."""
        keys = self._by_address.get(address.network)
        found = None if keys is None else keys.get(address_key(address.ip))
        if found is None:
            return None
        if isinstance(found, tuple):
            found = min(found, key=self._precedence)
        return self.get(found)

    def _precedence(self, uid: str) -> tuple[int, str]:
        """The least of several is found: pods before others, HBONE before plain, then by uid."""
        number, _, _ = unpack_head(self._records[uid])
        return -(2 if _POD in uid else 0) - self._kinds[number].rank, uid

    def is_clash_decided_by_uid(self, uids: tuple[str, ...]) -> bool:
        """Whether the first two of several are equal but for their uid."""
        first, second = [self._precedence(uid)[0] for uid in uids[:2]]
        return first == second

    def _claimants(self, claim: Claim) -> tuple[str, ...]:
        """The workloads of an address, who gets it first."""
        network, key = claim
        found = None if isinstance(key, tuple) else self._by_address.get(network, {}).get(key)
        if found is None or isinstance(found, str):
            return () if found is None else (found,)
        return tuple(sorted(found, key=self._precedence))

    def by_hostname(self, name: NamespacedHostname) -> Workload | None:
        """The best workload of that hostname and namespace."""
        found = [
            uid for uid in self._by_hostname.get(name.hostname, ()) if self._namespace(uid) == name.namespace
        ]
        return self.get(min(found, key=self._precedence)) if found else None

    def _namespace(self, uid: str) -> str:
        number, _, _ = unpack_head(self._records[uid])
        return self._kinds[number].prototype.namespace

    def local(self, info: WorkloadInfo) -> Workload | None:
        """The workload on this node that the agent means."""
        found: list[str] = []
        for uid in self._local.get((info.namespace, info.service_account), ()):
            record = self._records[uid]
            _, _, length = unpack_head(record)
            if name_of(uid, record[HEAD.size + length :]) == info.name:
                found.append(uid)
        if not found:
            return None
        return self.get(found[0] if len(found) == 1 else min(found, key=self._precedence))

    def has_local_account(self, account: Account) -> bool:
        """Whether any workload on this node runs under that account."""
        return account in self._local


class Replaced(NamedTuple):
    """What a workload was that is gone, or came again (`is_same`: as it was)."""

    kind: KnownKind
    node_locality: NodeLocality
    is_local: bool
    is_same: bool = False
    is_last_of_kind: bool = False


def _with(there: str | tuple[str, ...], uid: str) -> str | tuple[str, ...]:
    """The uids of an address and one more, each once."""
    if isinstance(there, tuple):
        return there if uid in there else (*there, uid)
    return there if there == uid else (there, uid)


def _discard(index: dict[K, dict[str, None]], key: K, uid: str) -> None:
    uids = index[key]
    uids.pop(uid, None)
    if not uids:
        del index[key]
