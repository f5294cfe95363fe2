"""Compiled policies say what their definition says."""

from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import TypeVar

from hypothesis import given
from hypothesis import strategies as st

from ztunnel_trio.decide.authorize import Permit, authorize, matches
from ztunnel_trio.model.address import SocketAddress
from ztunnel_trio.model.connection import InboundConnection
from ztunnel_trio.model.identity import SpiffeId
from ztunnel_trio.model.policy import (
    Action,
    Authorization,
    Exact,
    Match,
    PolicyScope,
    Prefix,
    Presence,
    ServiceAccountMatch,
    StringMatch,
    Suffix,
)

names = st.sampled_from(["", "a", "b", "ab"])
identities = st.builds(SpiffeId, names, names, names)
principals = identities.map(lambda identity: identity.principal)
ips = st.sampled_from(
    [IPv4Address("10.0.0.1"), IPv4Address("10.0.1.1"), IPv6Address("::1"), IPv6Address("::a00:1")]
)
connections = st.builds(
    InboundConnection,
    source=st.builds(SocketAddress, ips, st.just(1)),
    destination=st.builds(SocketAddress, ips, st.sampled_from([80, 81])),
    identity=identities | st.none(),
)
networks = st.sampled_from(
    [ip_network(text) for text in ("10.0.0.0/24", "10.0.0.1/32", "0.0.0.0/0", "::/0", "::1/128")]
)


def texts(values: st.SearchStrategy[str]) -> st.SearchStrategy[StringMatch]:
    return st.one_of(
        st.builds(Exact, values), st.builds(Prefix, names), st.builds(Suffix, names), st.just(Presence())
    )


T = TypeVar("T")


def some(values: st.SearchStrategy[T]) -> st.SearchStrategy[tuple[T, ...]]:
    return st.lists(values, max_size=2).map(lambda found: tuple(found))


accounts = st.builds(ServiceAccountMatch, names, names)
condition_lists = {
    "namespaces": some(texts(names)),
    "principals": some(texts(principals)),
    "service_accounts": some(accounts),
    "source_ips": some(networks),
    "destination_ips": some(networks),
    "destination_ports": some(st.sampled_from([80, 81])),
}
some_matches = st.fixed_dictionaries(
    {},
    optional={
        **condition_lists,
        **{f"not_{name}": values for name, values in condition_lists.items()},
        "impossible": st.booleans(),
    },
).map(lambda conditions: Match(**conditions))  # type: ignore[arg-type]
rules = st.lists(
    st.lists(st.lists(some_matches, max_size=2).map(tuple), max_size=2).map(tuple), max_size=2
).map(tuple)
policies = st.builds(
    Authorization,
    name=names,
    namespace=names,
    scope=st.just(PolicyScope.NAMESPACE),
    action=st.sampled_from(Action),
    rules=rules,
    dry_run=st.booleans(),
)


def holds(match: Match, connection: InboundConnection) -> bool:
    """The definition, word for word."""
    identity = connection.identity
    namespace = identity.namespace if identity is not None else ""
    account = (identity.namespace, identity.service_account) if identity is not None else None

    def principal_hits(rule: StringMatch) -> bool:
        return identity is not None and rule.hits(identity.principal)

    conditions = [
        ([r.hits(namespace) for r in match.namespaces], [r.hits(namespace) for r in match.not_namespaces]),
        (
            [principal_hits(rule) for rule in match.principals],
            [principal_hits(rule) for rule in match.not_principals],
        ),
        (
            [(a.namespace, a.service_account) == account for a in match.service_accounts],
            [(a.namespace, a.service_account) == account for a in match.not_service_accounts],
        ),
        (
            [connection.source.ip in network for network in match.source_ips],
            [connection.source.ip in network for network in match.not_source_ips],
        ),
        (
            [connection.destination.ip in network for network in match.destination_ips],
            [connection.destination.ip in network for network in match.not_destination_ips],
        ),
        (
            [connection.destination.port == port for port in match.destination_ports],
            [connection.destination.port == port for port in match.not_destination_ports],
        ),
    ]
    present = any(positive or negative for positive, negative in conditions)
    all_hold = all((not positive or any(positive)) and not any(negative) for positive, negative in conditions)
    return not match.impossible and present and all_hold


def policy_holds(policy: Authorization, connection: InboundConnection) -> bool:
    return any(
        all(not clause or any(holds(match, connection) for match in clause) for clause in rule)
        for rule in policy.rules
    )


# authorization.proto: "rules: OR-ed, clauses: AND-ed, matches: OR-ed"
@given(policies, connections)
def test_a_policy_matches_by_its_definition(policy: Authorization, connection: InboundConnection) -> None:
    assert matches(policy, connection) == policy_holds(policy, connection)


# istio, AuthorizationPolicy: "if there are any DENY policies that match, deny; if there are no ALLOW
# policies, allow; if any of the ALLOW policies match, allow; deny the request"
@given(st.lists(policies, max_size=4), connections)
def test_a_verdict_follows_from_the_enforced_policies(
    some_policies: list[Authorization], connection: InboundConnection
) -> None:
    enforced = [policy for policy in some_policies if not policy.dry_run]
    deny = [policy for policy in enforced if policy.action is Action.DENY]
    allow = [policy for policy in enforced if policy.action is Action.ALLOW]
    allowed = not any(policy_holds(policy, connection) for policy in deny) and (
        not allow or any(policy_holds(policy, connection) for policy in allow)
    )

    assert isinstance(authorize(connection, some_policies), Permit) is allowed
