"""What istio-cni puts into a captured pod: nftables rules, a mark rule and a local routing table.

The rules are those istio-cni loads with `nativeNftables` (istio `cni/pkg/iptables`, `cni/pkg/nftables`):
tables `istio-ambient-nat`, `-mangle` and `-raw` of family inet, IPv4 and IPv6 in one. Packets of the proxy
carry the mark 0x539 and are left alone; connections it opens with a client's address are recognised by the
connection mark 0x111, whose replies the routing table 100 delivers to it. The mangle output chain has to be
of type `route`: only that looks the route up again when the mark changes.
"""

import struct
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from ztunnel_trio.facts.network import (
    CONNECTION_MARK,
    DNS_PORT,
    HBONE_PORT,
    INBOUND_PLAINTEXT_PORT,
    OUTBOUND_PORT,
    PACKET_MARK,
    PACKET_MARK_MASK,
    PROBE_SOURCE_V4,
    PROBE_SOURCE_V6,
)
from ztunnel_trio.lab.netlink import BaseChain, Chain, Expression, Links, Table, commit
from ztunnel_trio.model.address import IPAddress

LOCAL_TABLE: Final = 100  # istio-cni: RouteTableInbound
RULE_PRIORITY: Final = 32764
DNS_ZONE: Final = 1  # the proxy's own questions get a connection tracking zone of their own

Rule = tuple[Expression, ...]

# numbers of linux/netfilter/nf_tables.h
_REGISTER: Final = 1
_EQUAL, _UNEQUAL = 0, 1
_META_MARK, _META_OUT_INTERFACE, _META_FAMILY, _META_PROTOCOL = 3, 7, 15, 16
_CT_MARK, _CT_ZONE = 3, 17
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
_ACCEPT, _JUMP = 1, -3
_PREROUTING, _OUTPUT = 0, 3
_TCP, _UDP = 6, 17
_IPV4, _IPV6 = 2, 10
_WHOLE_WORD: Final = 0xFFFFFFFF

_LOOPBACKS: Final[Sequence[IPAddress]] = (IPv4Address("127.0.0.1"), IPv6Address("::1"))
_PROBES: Final[Sequence[IPAddress]] = (IPv4Address(PROBE_SOURCE_V4), IPv6Address(PROBE_SOURCE_V6))


def capture(*, dns: bool = True) -> None:
    """Put the rules, the routing table and the mark rule into the calling thread's namespace.

    Called in a worker thread (`lab.netlink`). Repeating it replaces the rules.

    Raises:
        KernelLacks: the kernel has no nftables, no NAT or no policy routing.
    """
    commit(tables(dns=dns))
    with Links() as links:
        links.add_local_table(
            table=LOCAL_TABLE, mark=CONNECTION_MARK, mask=PACKET_MARK_MASK, priority=RULE_PRIORITY
        )


def tables(*, dns: bool) -> list[Table]:
    """The rules of one pod; without `dns` questions to port 53 are ordinary traffic."""
    nat = _table(
        "istio-ambient-nat",
        prerouting=_nat_prerouting(),
        output=_nat_output(dns=dns),
        kinds=("nat", "nat"),
        priority=-100,
    )
    mangle = _table(
        "istio-ambient-mangle",
        prerouting=[(*_mark(_EQUAL, PACKET_MARK), _count(), *_set_connection_mark())],
        output=[(*_connection_mark(CONNECTION_MARK), _count(), *_restore_mark())],
        kinds=("filter", "route"),
        priority=-150,
    )
    if not dns:
        return [nat, mangle]
    raw = _table(
        "istio-ambient-raw",
        prerouting=[(*_port(_UDP, 0, _EQUAL, 53), *_mark(_UNEQUAL, PACKET_MARK), _count(), *_set_zone())],
        output=[(*_port(_UDP, 2, _EQUAL, 53), *_mark(_EQUAL, PACKET_MARK), _count(), *_set_zone())],
        kinds=("filter", "filter"),
        priority=-300,
    )
    return [nat, mangle, raw]


def _table(
    name: str, *, prerouting: Sequence[Rule], output: Sequence[Rule], kinds: tuple[str, str], priority: int
) -> Table:
    ways = (("prerouting", _PREROUTING, prerouting, kinds[0]), ("output", _OUTPUT, output, kinds[1]))
    return Table(
        name=name,
        chains=[
            *(Chain(name=f"istio-{way}", rules=rules) for way, _, rules, _ in ways),
            *(
                Chain(
                    name=way,
                    rules=[(_verdict(_JUMP, f"istio-{way}"),)],
                    base=BaseChain(kind=kind, hook=hook, priority=priority),
                )
                for way, hook, _, kind in ways
            ),
        ],
    )


def _nat_prerouting() -> list[Rule]:
    probes = [
        (*_protocol(_TCP), *_address("source", _EQUAL, ip), _count(), _verdict(_ACCEPT)) for ip in _PROBES
    ]
    captured = [
        (
            *_address("destination", _UNEQUAL, ip),
            *_port(_TCP, 2, _UNEQUAL, HBONE_PORT),
            *_mark(_UNEQUAL, PACKET_MARK),
            _count(),
            *_redirect(INBOUND_PLAINTEXT_PORT),
        )
        for ip in _LOOPBACKS
    ]
    return probes + captured


def _nat_output(*, dns: bool) -> list[Rule]:
    unmarked = _mark(_UNEQUAL, PACKET_MARK)
    rules: list[Rule] = [
        (*_protocol(_TCP), *_address("destination", _EQUAL, ip), _count(), _verdict(_ACCEPT))
        for ip in _PROBES
    ]
    if dns:
        to_dns = (_count(), *_redirect(DNS_PORT))
        rules.append((*_out_interface(_UNEQUAL, "lo"), *unmarked, *_port(_UDP, 2, _EQUAL, 53), *to_dns))
        rules += [
            (*_address("destination", _UNEQUAL, ip), *_port(_TCP, 2, _EQUAL, 53), *unmarked, *to_dns)
            for ip in _LOOPBACKS
        ]
    rules.append((*_protocol(_TCP), *_mark(_EQUAL, CONNECTION_MARK), _count(), _verdict(_ACCEPT)))
    rules += [
        (*_out_interface(_EQUAL, "lo"), *_address("destination", _UNEQUAL, ip), _count(), _verdict(_ACCEPT))
        for ip in _LOOPBACKS
    ]
    rules += [
        (
            *_protocol(_TCP),
            *_address("destination", _UNEQUAL, ip),
            *unmarked,
            _count(),
            *_redirect(OUTBOUND_PORT),
        )
        for ip in _LOOPBACKS
    ]
    return rules


# ---------------------------------------------------------------- matches


def _compare(relation: int, value: bytes) -> Expression:
    return Expression("cmp", {"SREG": _REGISTER, "OP": relation, "DATA": {"NFTA_DATA_VALUE": value}})


def _meta(key: int) -> Expression:
    return Expression("meta", {"KEY": key, "DREG": _REGISTER})


def _payload(base: int, offset: int, length: int) -> Expression:
    return Expression("payload", {"DREG": _REGISTER, "BASE": base, "OFFSET": offset, "LEN": length})


def _masked(mask: int, xor: int = 0) -> Expression:
    """`register = register & mask ^ xor` of a mark, which the kernel keeps in its own byte order."""
    return Expression(
        "bitwise",
        {
            "SREG": _REGISTER,
            "DREG": _REGISTER,
            "LEN": 4,
            "MASK": {"NFTA_DATA_VALUE": struct.pack("=I", mask)},
            "XOR": {"NFTA_DATA_VALUE": struct.pack("=I", xor)},
        },
    )


def _mark(relation: int, mark: int) -> Rule:
    return _meta(_META_MARK), _masked(PACKET_MARK_MASK), _compare(relation, struct.pack("=I", mark))


def _connection_mark(mark: int) -> Rule:
    load = Expression("ct", {"KEY": _CT_MARK, "DREG": _REGISTER})
    return load, _masked(PACKET_MARK_MASK), _compare(_EQUAL, struct.pack("=I", mark))


def _protocol(number: int) -> Rule:
    return _meta(_META_PROTOCOL), _compare(_EQUAL, bytes([number]))


def _port(protocol: int, offset: int, relation: int, port: int) -> Rule:
    """`offset` in the transport header: 0 the source port, 2 the destination port."""
    field = _payload(_TRANSPORT_HEADER, offset, 2)
    return *_protocol(protocol), field, _compare(relation, struct.pack("!H", port))


def _address(which: str, relation: int, ip: IPAddress) -> Rule:
    family, offset = (_IPV4, 12) if ip.version == 4 else (_IPV6, 8)
    if which == "destination":
        offset += len(ip.packed)
    field = _payload(_NETWORK_HEADER, offset, len(ip.packed))
    return _meta(_META_FAMILY), _compare(_EQUAL, bytes([family])), field, _compare(relation, ip.packed)


def _out_interface(relation: int, name: str) -> Rule:
    return _meta(_META_OUT_INTERFACE), _compare(relation, name.encode().ljust(16, b"\0"))


# ---------------------------------------------------------------- statements


def _count() -> Expression:
    return Expression("counter", {})


def _load(value: bytes) -> Expression:
    return Expression("immediate", {"DREG": _REGISTER, "DATA": {"NFTA_DATA_VALUE": value}})


def _verdict(code: int, chain: str | None = None) -> Expression:
    verdict: dict[str, int | str] = {"NFTA_VERDICT_CODE": code}
    if chain is not None:
        verdict["NFTA_VERDICT_CHAIN"] = chain
    return Expression("immediate", {"DREG": 0, "DATA": {"NFTA_DATA_VERDICT": verdict}})


def _redirect(port: int) -> Rule:
    target = Expression("redir", {"REG_PROTO_MIN": _REGISTER, "FLAGS": ("NF_NAT_RANGE_PROTO_SPECIFIED",)})
    return _load(struct.pack("!H", port)), target


def _set_connection_mark() -> Rule:
    """`ct mark = ct mark & ~0xfff | 0x111`."""
    load = Expression("ct", {"KEY": _CT_MARK, "DREG": _REGISTER})
    changed = _masked(_WHOLE_WORD & ~PACKET_MARK_MASK, CONNECTION_MARK)
    return load, changed, Expression("ct", {"KEY": _CT_MARK, "SREG": _REGISTER})


def _restore_mark() -> Rule:
    load = Expression("ct", {"KEY": _CT_MARK, "DREG": _REGISTER})
    return load, Expression("meta", {"KEY": _META_MARK, "SREG": _REGISTER})


def _set_zone() -> Rule:
    return _load(struct.pack("=H", DNS_ZONE)), Expression("ct", {"KEY": _CT_ZONE, "SREG": _REGISTER})
