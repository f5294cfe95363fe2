"""L4 authorization policies (authorization.proto): rules are OR-ed, clauses AND-ed, matches OR-ed."""

from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Network, IPv6Network


class PolicyScope(Enum):
    GLOBAL = "Global"
    NAMESPACE = "Namespace"
    WORKLOAD_SELECTOR = "WorkloadSelector"


class Action(Enum):
    ALLOW = "Allow"
    DENY = "Deny"


@dataclass(frozen=True, slots=True)
class Exact:
    value: str

    def hits(self, text: str) -> bool:
        return text == self.value


@dataclass(frozen=True, slots=True)
class Prefix:
    value: str

    def hits(self, text: str) -> bool:
        return text.startswith(self.value)


@dataclass(frozen=True, slots=True)
class Suffix:
    value: str

    def hits(self, text: str) -> bool:
        return text.endswith(self.value)


@dataclass(frozen=True, slots=True)
class Presence:
    def hits(self, text: str) -> bool:
        return text != ""


StringMatch = Exact | Prefix | Suffix | Presence


@dataclass(frozen=True, slots=True)
class ServiceAccountMatch:
    namespace: str
    service_account: str


IPNetwork = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """Conditions that must all hold; within one condition any value may hit, of a `not_` one none.

    `impossible` marks a match one of whose positive lists held only unusable entries: it never hits
    (dropping the condition, as the reference does, would widen the policy).
    """

    namespaces: tuple[StringMatch, ...] = ()
    not_namespaces: tuple[StringMatch, ...] = ()
    principals: tuple[StringMatch, ...] = ()
    not_principals: tuple[StringMatch, ...] = ()
    service_accounts: tuple[ServiceAccountMatch, ...] = ()
    not_service_accounts: tuple[ServiceAccountMatch, ...] = ()
    source_ips: tuple[IPNetwork, ...] = ()
    not_source_ips: tuple[IPNetwork, ...] = ()
    destination_ips: tuple[IPNetwork, ...] = ()
    not_destination_ips: tuple[IPNetwork, ...] = ()
    destination_ports: tuple[int, ...] = ()
    not_destination_ports: tuple[int, ...] = ()
    impossible: bool = False


Clause = tuple[Match, ...]  # any of
Rule = tuple[Clause, ...]  # all of


@dataclass(frozen=True, slots=True, kw_only=True)
class Authorization:
    name: str
    namespace: str
    scope: PolicyScope
    action: Action
    rules: tuple[Rule, ...] = ()  # any of; none never matches
    dry_run: bool = False

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"
