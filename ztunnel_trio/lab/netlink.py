"""Links, addresses, routes and nftables over pyroute2: the only module that imports it.

pyroute2 runs an asyncio loop of its own for every socket, which fails on the Trio thread once trio-asyncio
is imported; so everything here is synchronous and is called from a worker thread that has entered the
namespace to work on (`Links` and `commit` act on the namespace of the calling thread). Opening one and
doing a dozen things with it costs about five milliseconds.
"""

import errno
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_network
from types import TracebackType
from typing import Final, Self

from pyroute2 import IPRoute
from pyroute2.netlink import NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.nfnetlink import NFNL_SUBSYS_NFTABLES, nfgen_msg
from pyroute2.netlink.nfnetlink.nftsocket import (
    NFPROTO_INET,
    NFT_MSG_DELTABLE,
    NFT_MSG_NEWCHAIN,
    NFT_MSG_NEWRULE,
    NFT_MSG_NEWTABLE,
    NFTSocket,
    nft_chain_msg,
    nft_rule_msg,
    nft_table_msg,
)

from ztunnel_trio.model.address import IPAddress

Interface = IPv4Interface | IPv6Interface
NestedAttributes = Mapping[str, "AttributeValue"]
AttributeValue = int | str | bytes | tuple[str, ...] | NestedAttributes

_BATCH_BEGIN: Final = 0x10  # NFNL_MSG_BATCH_BEGIN
_BATCH_END: Final = 0x11
_SCOPE_HOST: Final = 254
_LOCAL_ROUTE: Final = 2  # RTN_LOCAL
_NO_DUPLICATE_DETECTION: Final = 2  # IFA_F_NODAD


class KernelLacks(Exception):
    """The kernel refused something the lab cannot do without; the text says what it was for."""


@dataclass(frozen=True, slots=True)
class Expression:
    """One nftables expression: its kernel name and attributes, `NFTA_<NAME>_` left out of the keys."""

    name: str
    attributes: NestedAttributes


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseChain:
    """What ties a chain to a hook. `kind` is `filter`, `nat` or `route`."""

    kind: str
    hook: int
    priority: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    name: str
    rules: Sequence[Sequence[Expression]]
    base: BaseChain | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table of family inet; a chain is listed before those that jump to it."""

    name: str
    chains: Sequence[Chain]


class Links:
    """Interfaces, addresses and routes of the calling thread's namespace; a context manager.

    Every method raises `KernelLacks` with what it tried when the kernel refuses.
    """

    def __init__(self) -> None:
        self._route = IPRoute()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._route.close()

    def add_bridge(self, name: str) -> None:
        with _asking(f"a bridge ({name})"):
            self._route.link("add", ifname=name, kind="bridge")
            self.up(name)

    def add_veth(self, name: str, *, peer: str, peer_netns: int) -> None:
        """A pair with one end here and the other, called `peer`, in the namespace behind the descriptor."""
        with _asking(f"a veth pair ({name} to {peer})"):
            self._route.link("add", ifname=name, kind="veth", peer={"ifname": peer, "net_ns_fd": peer_netns})

    def enslave(self, name: str, bridge: str) -> None:
        with _asking(f"a port of the bridge {bridge} ({name})"):
            self._route.link("set", index=self._index(name), master=self._index(bridge))

    def set_mac(self, name: str, mac: str) -> None:
        with _asking(f"the hardware address {mac} of {name}"):
            self._route.link("set", index=self._index(name), address=mac)

    def up(self, name: str) -> None:
        with _asking(f"the link {name} up"):
            self._route.link("set", index=self._index(name), state="up")

    def delete(self, name: str) -> None:
        """Remove an interface; one that is gone already is no error."""
        for index in self._route.link_lookup(ifname=name):
            with _asking(f"the link {name} gone"):
                self._route.link("del", index=index)

    def add_address(self, address: Interface, device: str) -> None:
        flags = {"IFA_FLAGS": _NO_DUPLICATE_DETECTION} if address.version == 6 else {}
        with _asking(f"the address {address} on {device}"):
            self._route.addr(
                "add",
                index=self._index(device),
                address=str(address.ip),
                prefixlen=address.network.prefixlen,
                **flags,
            )

    def remove_address(self, address: Interface, device: str) -> None:
        with _asking(f"the address {address} off {device}"):
            self._route.addr(
                "del",
                index=self._index(device),
                address=str(address.ip),
                prefixlen=address.network.prefixlen,
            )

    def add_default_route(self, gateway: IPAddress, device: str) -> None:
        everything = "0.0.0.0/0" if gateway.version == 4 else "::/0"
        with _asking(f"a default route through {gateway}"):
            self._route.route("add", dst=everything, gateway=str(gateway), oif=self._index(device))

    def add_local_table(self, *, table: int, mark: int, mask: int, priority: int) -> None:
        """Deliver marked packets locally, whatever their destination, for both IP families: `local default
        dev lo` in a table of its own and the rule that leads there."""
        loopback = self._index("lo")
        for family, everything in ((socket.AF_INET, "0.0.0.0/0"), (socket.AF_INET6, "::/0")):
            scope = {"scope": _SCOPE_HOST} if family == socket.AF_INET else {}
            with _asking(f"policy routing (table {table})"):
                self._route.route(
                    "replace",
                    family=family,
                    dst=str(ip_network(everything)),
                    oif=loopback,
                    table=table,
                    type=_LOCAL_ROUTE,
                    **scope,
                )
                self._route.rule(
                    "add", family=family, table=table, priority=priority, fwmark=mark, fwmask=mask, action=1
                )

    def _index(self, name: str) -> int:
        found: Sequence[int] = self._route.link_lookup(ifname=name)
        if not found:
            raise KernelLacks(f"there is no interface {name}")
        return found[0]


class _asking:  # noqa: N801  it reads as a verb: with _asking(what)
    """Turns the kernel's refusal into `KernelLacks`, naming what was asked for."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, NetlinkError):
            code: int = error.code
            name = errno.errorcode.get(code, str(code))
            raise KernelLacks(f"the kernel refuses {self._what}: {name} ({error.args[-1]})") from error
        if isinstance(error, OSError):
            raise KernelLacks(f"the kernel refuses {self._what}: {error}") from error


def commit(tables: Sequence[Table]) -> None:
    """Replace the tables by these, all in one transaction, in the calling thread's namespace.

    Raises:
        KernelLacks: naming the first expression kinds the kernel does not know, or its errno.
    """
    kinds = sorted(
        {e.name for table in tables for chain in table.chains for rule in chain.rules for e in rule}
    )
    with _asking(f"nftables rules of family inet with {', '.join(kinds)}"):
        nft = NFTSocket(nfgen_family=NFPROTO_INET)
        try:
            messages = [_edge(_BATCH_BEGIN)]
            for table in tables:
                name = {"NFTA_TABLE_NAME": table.name}
                messages += [  # as `nft` does: adding first makes deleting a missing table no error
                    _message(nft_table_msg, NFT_MSG_NEWTABLE, name),
                    _message(nft_table_msg, NFT_MSG_DELTABLE, name),
                    _message(nft_table_msg, NFT_MSG_NEWTABLE, name),
                ]
                messages += [_chain(table, chain) for chain in table.chains]
                messages += [_rule(table, chain, rule) for chain in table.chains for rule in chain.rules]
            nft.nlm_request_batch([*messages, _edge(_BATCH_END)])
        finally:
            nft.close()


def _chain(table: Table, chain: Chain) -> nfgen_msg:
    attributes: dict[str, AttributeValue] = {"NFTA_CHAIN_TABLE": table.name, "NFTA_CHAIN_NAME": chain.name}
    if base := chain.base:
        attributes["NFTA_CHAIN_HOOK"] = {
            "NFTA_HOOK_HOOKNUM": base.hook,
            "NFTA_HOOK_PRIORITY": base.priority,
        }
        attributes["NFTA_CHAIN_POLICY"] = 1  # NF_ACCEPT
        attributes["NFTA_CHAIN_TYPE"] = base.kind
    return _message(nft_chain_msg, NFT_MSG_NEWCHAIN, attributes)


def _rule(table: Table, chain: Chain, rule: Sequence[Expression]) -> nfgen_msg:
    message = _message(
        nft_rule_msg, NFT_MSG_NEWRULE, {"NFTA_RULE_TABLE": table.name, "NFTA_RULE_CHAIN": chain.name}
    )
    message["header"]["flags"] |= NLM_F_APPEND
    message["attrs"].append(["NFTA_RULE_EXPRESSIONS", [_expression(e) for e in rule]])
    return message


def _expression(expression: Expression) -> object:
    prefix = f"NFTA_{expression.name.upper()}_"
    attributes = [(prefix + key, _encoded(value)) for key, value in expression.attributes.items()]
    return {"attrs": [("NFTA_EXPR_NAME", expression.name), ("NFTA_EXPR_DATA", {"attrs": attributes})]}


def _message(kind: type[nfgen_msg], number: int, attributes: NestedAttributes) -> nfgen_msg:
    message = kind()
    message["header"]["type"] = NFNL_SUBSYS_NFTABLES << 8 | number
    message["header"]["flags"] = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE
    message["nfgen_family"] = NFPROTO_INET
    message["attrs"] = [[key, _encoded(value)] for key, value in attributes.items()]
    return message


def _edge(number: int) -> nfgen_msg:
    message = nfgen_msg()
    message["res_id"] = NFNL_SUBSYS_NFTABLES
    message["header"]["type"] = number
    message["header"]["flags"] = NLM_F_REQUEST
    return message


def _encoded(value: AttributeValue) -> object:
    if isinstance(value, Mapping):
        return {"attrs": [(key, _encoded(inner)) for key, inner in value.items()]}
    return value
