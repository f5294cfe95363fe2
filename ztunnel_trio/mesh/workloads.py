"""The workloads of the mesh: by uid, address, hostname, and on this node by account.

Theory of operation: a workload nobody asked about is a *record*, a few bytes under its uid: the numbers of
its template and its place, its addresses and its name. A *template* is what all workloads of a deployment
share, its services among it; a *place* is a node and a locality. Both are numbered and counted, and go with
their last workload. The garbage collector therefore sees one object a deployment, not one a workload. A
`Workload` is made of its record on first use and kept in a cache of bounded size.
"""

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from struct import Struct
from typing import Final, Generic, NamedTuple, TypeVar

from ztunnel_trio.mesh.entries import NodeLocality, WorkloadEntry, WorkloadKind, build_workload
from ztunnel_trio.mesh.keys import AddressKey, address_key, packed_key
from ztunnel_trio.mesh.services import Backing, Shape
from ztunnel_trio.model.address import NamespacedHostname, NetworkAddress
from ztunnel_trio.model.workload import (
    Health,
    InboundProtocol,
    NetworkMode,
    Workload,
    WorkloadInfo,
)

WORKLOADS_BUILT: Final = 8192  # values kept at most; about 1.5 KiB each

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

Account = tuple[str, str]
"""Namespace and service account."""


class Numbered(Generic[K, V]):
    """Values under small numbers, equal keys under the same one, each until its last holder lets go.

    `number` gives the number of a key, if it has one. Who keeps a number counts itself in `holders`.
    """

    __slots__ = ("_free", "_keys", "_numbers", "holders", "number", "values")

    def __init__(self) -> None:
        self.values: list[V | None] = []
        self.holders: list[int] = []
        self._keys: list[K | None] = []
        self._numbers: dict[K, int] = {}
        self._free: list[int] = []
        self.number: Final = self._numbers.get

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, number: int) -> V:
        value = self.values[number]
        assert value is not None, "a number is used by its holders only"
        return value

    def add(self, key: K, value: V) -> int:
        """A number for a new key; nobody holds it yet."""
        if self._free:
            number = self._free.pop()
            self.values[number], self._keys[number] = value, key
        else:
            number = len(self.values)
            self.values.append(value)
            self._keys.append(key)
            self.holders.append(0)
        self._numbers[key] = number
        return number

    def release(self, number: int) -> V | None:
        """One holder fewer; the value, if that was the last."""
        self.holders[number] -= 1
        if self.holders[number]:
            return None
        key, value = self._keys[number], self.values[number]
        assert key is not None
        del self._numbers[key]
        self._keys[number] = self.values[number] = None
        self._free.append(number)
        return value


class Template:
    """What workloads share, with what is asked of it often."""

    __slots__ = (
        "account",
        "backings",
        "healthy",
        "hostname",
        "indexed",
        "network",
        "prototype",
        "rank",
        "wants_certificate",
    )

    def __init__(self, shared: WorkloadKind, backing: Callable[[NamespacedHostname], Backing]) -> None:
        prototype = shared.prototype
        hbone = prototype.protocol is InboundProtocol.HBONE
        self.prototype = prototype
        self.network, self.hostname = prototype.network, prototype.hostname
        self.account = (prototype.namespace, prototype.service_account)
        self.indexed = prototype.network_mode is not NetworkMode.HOST_NETWORK
        self.healthy = prototype.health is Health.HEALTHY
        self.rank = 1 if hbone else 0
        self.wants_certificate = hbone or prototype.native_tunnel
        self.backings = tuple(
            [(backing(key), Shape.of(ports, prototype.health)) for key, ports in prototype.services.items()]
        )


class Sketch(NamedTuple):
    """What load balancing asks of a workload, without making the whole value."""

    prototype: Workload  # uid, name, addresses, node and locality are not its
    place: NodeLocality
    has_addresses: bool


_HEAD: Final = Struct("<III")  # template, place, length of the addresses
_pack_head: Final = _HEAD.pack
_POD: Final = "//Pod/"  # istiod: every pod's uid has it, nothing else does


@dataclass(slots=True, eq=False)
class Workloads:
    """The store. `backing` gives the endpoint set of a service, also of one not known yet."""

    local_node: str | None
    backing: Callable[[NamespacedHostname], Backing]
    built_at_most: int = WORKLOADS_BUILT
    _records: dict[str, bytes] = field(default_factory=dict)
    _templates: Numbered[bytes | Workload, Template] = field(default_factory=Numbered)
    _places: Numbered[tuple[str, str, str, str], NodeLocality] = field(default_factory=Numbered)
    _by_address: dict[str, dict[AddressKey, str | tuple[str, ...]]] = field(default_factory=dict)
    _by_hostname: dict[str, dict[str, None]] = field(default_factory=dict)
    _local: dict[Account, dict[str, None]] = field(default_factory=dict)
    _built: dict[str, Workload] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, uid: str) -> bool:
        return uid in self._records

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    # change

    def put(self, entry: WorkloadEntry) -> "tuple[Template, Removed | None]":
        """Index a workload in place of the one of its uid, if there was one; its template, and what that was.

        One that has not changed is left as it is.
        """
        uid, name, addresses, place, shared = entry
        templates, places = self._templates, self._places
        number = templates.number(shared.key)
        if number is None:
            number = templates.add(shared.key, self._new_template(shared))
        template = templates[number]
        place_number = places.number(place.key)
        if place_number is None:
            place_number = places.add(place.key, place)
        block = addresses[0] if len(addresses) == 1 else _join(addresses)
        record = _pack_head(number, place_number, len(block)) + block + _tail(uid, name)
        there = self._records.get(uid)
        stays = there is not None and self._stays(there, template, block)
        if stays and there == record:
            return template, Removed(template, place, self._is_local(place), is_same=True)
        templates.holders[number] += 1
        places.holders[place_number] += 1
        removed = None if there is None else self._take_out(uid, there, with_addresses=not stays)
        self._records[uid] = record
        if template.indexed and addresses:
            network = self._by_address.get(template.network)
            if network is None:
                network = self._by_address[template.network] = {}
            for packed in addresses:
                key = int.from_bytes(packed, "big") if len(packed) == 4 else packed  # packed_key, in place
                found = network.setdefault(key, uid)
                if found is not uid:
                    network[key] = _with(found, uid)
        if template.hostname:
            self._by_hostname.setdefault(template.hostname, {})[uid] = None
        if self.local_node is None or self.local_node == place.node:
            self._local.setdefault(template.account, {})[uid] = None
        return template, removed

    def remove(self, uid: str) -> "Removed | None":
        """Take a workload out of every index; None if there is none of that uid."""
        record = self._records.pop(uid, None)
        return None if record is None else self._take_out(uid, record)

    def _stays(self, record: bytes, template: Template, block: bytes) -> bool:
        """Whether a workload keeps its place in the index of addresses: they are the same and its alone.

        One that shares an address is inserted anew: the last to come counts.
        """
        number, _, length = _HEAD.unpack_from(record)
        before = self._templates[number]
        if not length or not before.indexed or not template.indexed:
            return False
        if before.prototype.network != template.prototype.network:
            return False
        if record[_HEAD.size : _HEAD.size + length] != block:
            return False
        keys = self._by_address[template.prototype.network]
        return not any(isinstance(keys.get(packed_key(packed)), tuple) for packed in _split(block))

    def _take_out(self, uid: str, record: bytes, *, with_addresses: bool = True) -> "Removed":
        """Take what a record says out of every index."""
        self._built.pop(uid, None)
        number, place_number, length = _HEAD.unpack_from(record)
        template, place = self._templates[number], self._places[place_number]
        prototype = template.prototype
        if with_addresses and template.indexed and length:
            self._remove_addresses(prototype.network, uid, _split(record[_HEAD.size : _HEAD.size + length]))
        if prototype.hostname:
            _discard(self._by_hostname, prototype.hostname, uid)
        is_local = self._is_local(place)
        if is_local:
            _discard(self._local, template.account, uid)
        self._places.release(place_number)
        if self._templates.release(number) is not None:
            for backing, _ in template.backings:
                backing.templates -= 1
        return Removed(template, place, is_local)

    def _is_local(self, place: NodeLocality) -> bool:
        return self.local_node is None or self.local_node == place.node

    def _new_template(self, shared: WorkloadKind) -> Template:
        template = Template(shared, self.backing)
        for backing, _ in template.backings:
            backing.templates += 1
        return template

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
        number, place_number, length = _HEAD.unpack_from(record)
        place = self._places[place_number]
        end = _HEAD.size + length
        return build_workload(
            self._templates[number].prototype,
            uid,
            _name(uid, record[end:]),
            _split(record[_HEAD.size : end]),
            place,
        )

    def sketch(self, uid: str) -> Sketch | None:
        """The few facts load balancing compares, from the record."""
        record = self._records.get(uid)
        if record is None:
            return None
        number, place_number, length = _HEAD.unpack_from(record)
        return Sketch(self._templates[number].prototype, self._places[place_number], length > 0)

    def at(self, address: NetworkAddress) -> Workload | None:
        """The best workload of an address: pods first, then HBONE, then the last inserted."""
        keys = self._by_address.get(address.network)
        found = None if keys is None else keys.get(address_key(address.ip))
        if found is None:
            return None
        if isinstance(found, tuple):
            found = max(reversed(found), key=self._rank)
        return self.get(found)

    def _rank(self, uid: str) -> int:
        number, _, _ = _HEAD.unpack_from(self._records[uid])
        return (2 if _POD in uid else 0) + self._templates[number].rank

    def by_hostname(self, name: NamespacedHostname) -> Workload | None:
        """The first workload of that hostname and namespace."""
        for uid in self._by_hostname.get(name.hostname, ()):
            workload = self.get(uid)
            if workload is not None and workload.namespace == name.namespace:
                return workload
        return None

    def local(self, info: WorkloadInfo) -> Workload | None:
        """The workload on this node that the agent means."""
        for uid in self._local.get((info.namespace, info.service_account), ()):
            record = self._records[uid]
            _, _, length = _HEAD.unpack_from(record)
            if _name(uid, record[_HEAD.size + length :]) == info.name:
                return self.get(uid)
        return None

    def has_local_account(self, account: Account) -> bool:
        """Whether any workload on this node runs under that account."""
        return account in self._local


class Removed(NamedTuple):
    """What a workload was that is gone, or came again (`is_same`: as it was)."""

    template: Template
    place: NodeLocality
    is_local: bool
    is_same: bool = False


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


def _tail(uid: str, name: str) -> bytes:
    """The name of a workload as it ends its record: nothing where the uid ends with it, as a pod's does."""
    return b"" if uid.endswith("/" + name) and "/" not in name else b"=" + name.encode()


def _name(uid: str, tail: bytes) -> str:
    return tail[1:].decode() if tail else uid.rpartition("/")[2]


def _join(addresses: tuple[bytes, ...]) -> bytes:
    """Addresses as one block: a lone one as it is, several each after its length."""
    if len(addresses) == 1:
        return addresses[0]
    return b"".join([bytes((len(packed),)) + packed for packed in addresses])


def _split(block: bytes) -> tuple[bytes, ...]:
    """The addresses of a block. A block of several is longer than 4 bytes and never 16 long:
    its addresses take 5 or 17 bytes each, and no sum of those is 16."""
    if len(block) in (4, 16):
        return (block,)
    found, start = [], 0
    while start < len(block):
        end = start + 1 + block[start]
        found.append(block[start + 1 : end])
        start = end
    return tuple(found)
