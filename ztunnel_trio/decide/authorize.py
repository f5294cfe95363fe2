"""Whether an inbound connection is allowed by the policies of its workload (authorization.proto).

Enforced DENY policies come first, then ALLOW policies; without any ALLOW policy everything else is allowed.
Dry-run policies never decide, they only leave notes. Policies are compiled once into `Judgement`s of plain
set lookups, because a node judges every connection and, after a policy change, all open ones again.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from ztunnel_trio.model.address import IPAddress
from ztunnel_trio.model.connection import InboundConnection
from ztunnel_trio.model.policy import (
    Action,
    Authorization,
    Clause,
    Exact,
    IPNetwork,
    Match,
    Rule,
    ServiceAccountMatch,
    StringMatch,
)

ALLOW_LIST_MISS: Final = "allow policies exist, but none allowed"


@dataclass(frozen=True, slots=True)
class Note:
    """One log line of a decision; `policy` is `namespace/name` where the line is about one policy."""

    message: str
    policy: str | None = None


@dataclass(frozen=True, slots=True)
class Decider:
    """What decided: a policy, the index of its rule, the conditions that held there."""

    policy: str
    rule: int
    fields: tuple[str, ...]

    def __str__(self) -> str:
        return ", ".join((f"rule {self.rule}", *self.fields))


@dataclass(frozen=True, slots=True)
class Permit:
    """The connection may go on. `decider` is None when no ALLOW policy exists."""

    decider: Decider | None
    notes: tuple[Note, ...]


@dataclass(frozen=True, slots=True)
class Rejection:
    """The connection must not go on. `decider` is None when ALLOW policies exist and none matched."""

    reason: str
    decider: Decider | None
    notes: tuple[Note, ...]


@dataclass(frozen=True, slots=True)
class Miss:
    """The first condition that failed in one match of a rule; `field` None: the match can never hit."""

    policy: str
    rule: int
    field: str | None


@dataclass(slots=True)
class _Facts:
    namespace: str
    principal: str | None
    service_account: tuple[str, str] | None
    source: IPAddress
    destination: IPAddress
    port: int


_Test = Callable[[_Facts], bool]


@dataclass(frozen=True, slots=True)
class _Match:
    names: tuple[str, ...]
    tests: tuple[_Test, ...]  # one a name; none: never hits

    def hits(self, facts: _Facts) -> bool:
        for test in self.tests:
            if not test(facts):
                return False
        return bool(self.tests)


_Clauses = tuple[tuple[_Match, ...], ...]


@dataclass(frozen=True, slots=True)
class _Policy:
    key: str
    rules: tuple[_Clauses, ...]

    def decider(self, facts: _Facts) -> Decider | None:
        """The first rule that matches, None if none does."""
        for n, clauses in enumerate(self.rules):
            fields = _fields_hit(clauses, facts)
            if fields is not None:
                return Decider(self.key, n, fields)
        return None


def _fields_hit(clauses: _Clauses, facts: _Facts) -> tuple[str, ...] | None:
    """Names of the conditions through which every clause holds; None when one does not."""
    fields: tuple[str, ...] = ()
    for clause in clauses:
        for match in clause:
            if match.hits(facts):
                fields += match.names
                break
        else:
            if clause:
                return None
    return fields


_NO_ALLOW: Final = Note("no allow policies, allow")
_NONE_MATCHED: Final = Note("no allow policies matched")
_DRY_NONE_MATCHED: Final = Note("dry-run: no allow policies match")
_FREE: Final = Permit(None, (_NO_ALLOW,))


class Judgement:
    """A workload's policies, compiled. Immutable: make a new one when the policies change."""

    __slots__ = ("_allow", "_deny", "_dry_allow", "_dry_deny")

    def __init__(self, policies: Iterable[Authorization]) -> None:
        self._deny: list[_Policy] = []
        self._allow: list[_Policy] = []
        self._dry_deny: list[_Policy] = []
        self._dry_allow: list[_Policy] = []
        for policy in policies:
            if policy.action is Action.DENY:
                group = self._dry_deny if policy.dry_run else self._deny
            else:
                group = self._dry_allow if policy.dry_run else self._allow
            group.append(_Policy(policy.key, tuple(_compile_rule(rule) for rule in policy.rules)))

    def authorize(self, connection: InboundConnection) -> Permit | Rejection:
        """Decide for one connection (ztunnel src/state.rs, assert_rbac)."""
        if not (self._deny or self._allow or self._dry_deny or self._dry_allow):
            return _FREE
        facts = _facts_of(connection)
        notes = [
            Note("dry-run: deny policy match", policy.key)
            for policy in self._dry_deny
            if policy.decider(facts) is not None
        ]
        for policy in self._deny:
            if (decider := policy.decider(facts)) is not None:
                notes.append(Note("deny policy match", policy.key))
                return Rejection(f"explicitly denied by: {policy.key}", decider, tuple(notes))
        dry_hits = [policy.key for policy in self._dry_allow if policy.decider(facts) is not None]
        notes.extend([Note("dry-run: allow policy match", key) for key in dry_hits])
        if not self._allow:
            if self._dry_allow and not dry_hits:
                notes.append(_DRY_NONE_MATCHED)
            return Permit(None, (*notes, _NO_ALLOW))
        for policy in self._allow:
            if (decider := policy.decider(facts)) is not None:
                notes.append(Note("allow policy match", policy.key))
                return Permit(decider, tuple(notes))
        return Rejection(ALLOW_LIST_MISS, None, (*notes, _NONE_MATCHED))

    def misses(self, connection: InboundConnection) -> tuple[Miss, ...]:
        """Why the enforced ALLOW policies did not match: each match that failed, for an explanation."""
        facts = _facts_of(connection)
        found: list[Miss] = []
        for policy in self._allow:
            for n, clauses in enumerate(policy.rules):
                for clause in clauses:
                    if any(match.hits(facts) for match in clause):
                        continue
                    found.extend(Miss(policy.key, n, _first_failure(match, facts)) for match in clause)
        return tuple(found)


def authorize(connection: InboundConnection, policies: Sequence[Authorization]) -> Permit | Rejection:
    """Decide for one connection by the policies of its workload; see `Judgement` for a kept form."""
    if not policies:
        return _FREE
    return Judgement(policies).authorize(connection)


def matches(policy: Authorization, connection: InboundConnection) -> bool:
    """Whether any rule of one policy matches; its action and dry-run mark play no part."""
    facts = _facts_of(connection)
    return any(_fields_hit(_compile_rule(rule), facts) is not None for rule in policy.rules)


def _facts_of(connection: InboundConnection) -> _Facts:
    identity = connection.identity
    if identity is None:
        return _Facts(
            "", None, None, connection.source.ip, connection.destination.ip, connection.destination.port
        )
    return _Facts(
        identity.namespace,
        identity.principal,
        (identity.namespace, identity.service_account),
        connection.source.ip,
        connection.destination.ip,
        connection.destination.port,
    )


def _first_failure(match: _Match, facts: _Facts) -> str | None:
    for name, test in zip(match.names, match.tests, strict=True):
        if not test(facts):
            return name
    return None


def _compile_rule(rule: Rule) -> _Clauses:
    return tuple(_compile_clause(clause) for clause in rule)


def _compile_clause(clause: Clause) -> tuple[_Match, ...]:
    return tuple(_compile_match(match) for match in clause)


def _compile_match(match: Match) -> _Match:
    """One test a condition that is present, the cheap ones first. An empty match gets none: it never hits."""
    if match.impossible:
        return _Match((), ())
    tests: list[tuple[str, _Test]] = []

    def add(name: str, hits: _Test | None, misses: _Test | None) -> None:
        if hits is not None:
            tests.append((name, hits))
        if misses is not None:
            tests.append((f"not_{name}", _negated(misses)))

    add("destination_ports", _ports(match.destination_ports), _ports(match.not_destination_ports))
    add("namespaces", _namespaces(match.namespaces), _namespaces(match.not_namespaces))
    add("principals", _principals(match.principals), _principals(match.not_principals))
    add("service_accounts", _accounts(match.service_accounts), _accounts(match.not_service_accounts))
    add("source_ips", _source_ips(match.source_ips), _source_ips(match.not_source_ips))
    add(
        "destination_ips",
        _destination_ips(match.destination_ips),
        _destination_ips(match.not_destination_ips),
    )
    return _Match(tuple(name for name, _ in tests), tuple(test for _, test in tests))


def _negated(test: _Test) -> _Test:
    return lambda facts: not test(facts)


def _ports(wanted: tuple[int, ...]) -> _Test | None:
    if not wanted:
        return None
    ports = frozenset(wanted)
    return lambda facts: facts.port in ports


def _text_hits(wanted: tuple[StringMatch, ...]) -> Callable[[str], bool]:
    exact = frozenset(match.value for match in wanted if isinstance(match, Exact))
    others = tuple(match for match in wanted if not isinstance(match, Exact))
    if not others:
        return exact.__contains__
    return lambda text: text in exact or any(match.hits(text) for match in others)


def _namespaces(wanted: tuple[StringMatch, ...]) -> _Test | None:
    """A connection without identity has the empty namespace."""
    if not wanted:
        return None
    hits = _text_hits(wanted)
    return lambda facts: hits(facts.namespace)


def _principals(wanted: tuple[StringMatch, ...]) -> _Test | None:
    """Without identity no entry hits, not even an empty prefix."""
    if not wanted:
        return None
    hits = _text_hits(wanted)
    return lambda facts: facts.principal is not None and hits(facts.principal)


def _accounts(wanted: tuple[ServiceAccountMatch, ...]) -> _Test | None:
    """The trust domain plays no part."""
    if not wanted:
        return None
    accounts = frozenset((match.namespace, match.service_account) for match in wanted)
    return lambda facts: facts.service_account in accounts


def _address_hits(networks: tuple[IPNetwork, ...]) -> Callable[[IPAddress], bool]:
    """Networks by family and prefix length: one set lookup for each length that occurs."""
    by_shift: dict[tuple[int, int], set[int]] = {}
    for network in networks:
        shift = network.max_prefixlen - network.prefixlen
        by_shift.setdefault((network.version, shift), set()).add(int(network.network_address) >> shift)
    table = tuple((version, shift, frozenset(found)) for (version, shift), found in by_shift.items())

    def hits(ip: IPAddress) -> bool:
        number = int(ip)
        family = ip.version
        return any(version == family and number >> shift in found for version, shift, found in table)

    return hits


def _source_ips(networks: tuple[IPNetwork, ...]) -> _Test | None:
    if not networks:
        return None
    hits = _address_hits(networks)
    return lambda facts: hits(facts.source)


def _destination_ips(networks: tuple[IPNetwork, ...]) -> _Test | None:
    if not networks:
        return None
    hits = _address_hits(networks)
    return lambda facts: hits(facts.destination)
