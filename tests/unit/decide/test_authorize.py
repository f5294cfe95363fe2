"""Policies decide about connections as authorization.proto and the Rust ztunnel's rbac tests say."""

from ipaddress import IPv4Network, IPv6Network, ip_network

import pytest

from ztunnel_trio.decide.authorize import (
    Decider,
    Judgement,
    Miss,
    Note,
    Permit,
    Rejection,
    authorize,
    matches,
)
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
    Rule,
    ServiceAccountMatch,
    StringMatch,
    Suffix,
)


def connection(
    source: str, destination: str, identity: SpiffeId | None = None, network: str = ""
) -> InboundConnection:
    return InboundConnection(
        source=SocketAddress.parse(source),
        destination=SocketAddress.parse(destination),
        identity=identity,
        network=network,
    )


TLS_ID = SpiffeId("td", "namespace", "account")
PLAIN = connection("127.0.0.1:1234", "127.0.0.2:8080")
TLS = connection("127.0.0.1:1234", "127.0.0.2:8080", TLS_ID)
ALT = connection("127.0.0.3:1234", "127.0.0.4:9090", SpiffeId("td-alt", "ns-alt", "sa=alt"))


def net(text: str) -> IPv4Network | IPv6Network:
    return ip_network(text, strict=False)


def policy(
    *rules: Rule,
    name: str = "policy",
    namespace: str = "ns1",
    action: Action = Action.ALLOW,
    dry_run: bool = False,
) -> Authorization:
    return Authorization(
        name=name,
        namespace=namespace,
        scope=PolicyScope.NAMESPACE,
        action=action,
        rules=rules,
        dry_run=dry_run,
    )


def one(match: Match) -> Authorization:
    return policy(((match,),))


ACCOUNT = ServiceAccountMatch("namespace", "account")
PRINCIPAL = Exact("td/ns/namespace/sa/account")


@pytest.mark.parametrize(
    ("match", "plain", "tls", "alt"),
    [
        (Match(namespaces=(Exact("namespace"),)), False, True, False),
        (Match(not_namespaces=(Exact("namespace"),)), True, False, True),
        (Match(service_accounts=(ACCOUNT,)), False, True, False),
        (Match(not_service_accounts=(ACCOUNT,)), True, False, True),
        (Match(principals=(PRINCIPAL,)), False, True, False),
        (Match(not_principals=(PRINCIPAL,)), True, False, True),
        (Match(source_ips=(net("127.0.0.1/32"),)), True, True, False),
        (Match(not_source_ips=(net("127.0.0.1/32"),)), False, False, True),
        (Match(destination_ips=(net("127.0.0.2/32"),)), True, True, False),
        (Match(not_destination_ips=(net("127.0.0.2/32"),)), False, False, True),
        (Match(destination_ips=(net("127.0.0.1/24"),)), True, True, True),  # host bits set
        (Match(destination_ips=(net("0.0.0.0/0"),)), True, True, True),
        (Match(destination_ips=(net("::/0"),)), False, False, False),  # families never cross
        (Match(destination_ports=(8080,)), True, True, False),
        (Match(not_destination_ports=(8080,)), False, False, True),
        # without an identity a namespace is empty text, but a principal is nothing at all
        (Match(namespaces=(Prefix(""),)), True, True, True),
        (Match(namespaces=(Presence(),)), False, True, True),
        (Match(principals=(Prefix(""),)), False, True, True),
        (Match(principals=(Presence(),)), False, True, True),
        (Match(not_principals=(Presence(),)), True, False, False),
        (Match(principals=(Prefix("spiffe://td"),)), False, False, False),  # the scheme is never compared
        (Match(principals=(Prefix("td/"), Suffix("/sa=alt"))), False, True, True),
        # several conditions must hold together, values of one are alternatives
        (Match(namespaces=(Exact("namespace"),), destination_ports=(80,)), False, False, False),
        (
            Match(namespaces=(Exact("namespace"), Exact("ns-alt")), destination_ports=(8080,)),
            False,
            True,
            False,
        ),
        (Match(namespaces=(Exact("namespace"),), not_namespaces=(Prefix("name"),)), False, False, False),
        (Match(destination_ports=(8080,), impossible=True), False, False, False),
        (Match(impossible=True), False, False, False),
    ],
)
def test_one_condition_matches_these_connections(match: Match, plain: bool, tls: bool, alt: bool) -> None:
    assert [matches(one(match), c) for c in (PLAIN, TLS, ALT)] == [plain, tls, alt]


@pytest.mark.parametrize(
    ("rules", "hits"),
    [
        ((((Match(),),),), False),  # one empty match
        ((((),),), True),  # one empty clause
        (((),), True),  # one rule without clauses
        ((), False),
        ((((Match(), Match(destination_ports=(8080,))),),), True),  # only the real match counts
        ((((Match(), Match(destination_ports=(80,))),),), False),
    ],
)
def test_emptiness_matches_by_where_it_is(rules: tuple[Rule, ...], hits: bool) -> None:
    assert matches(policy(*rules), PLAIN) is hits


@pytest.mark.parametrize(
    ("namespace", "destination", "network", "hits"),
    [
        ("a", "127.0.0.2:80", "", True),
        ("b", "127.0.0.2:80", "", True),
        ("b", "127.0.0.2:80", "remote", True),
        ("bad", "127.0.0.2:80", "", False),
        ("b", "127.0.0.2:12345", "", False),
    ],
)
def test_matches_of_a_clause_are_alternatives_and_clauses_add_up(
    namespace: str, destination: str, network: str, hits: bool
) -> None:
    clauses = (
        (Match(namespaces=(Exact("a"),)), Match(namespaces=(Exact("b"),))),
        (Match(destination_ports=(80,)),),
    )

    peer = connection("127.0.0.1:1234", destination, SpiffeId("td", namespace, "account"), network)

    assert matches(policy(clauses), peer) is hits


@pytest.mark.parametrize(("namespace", "hits"), [("a", True), ("b", True), ("bad", False)])
def test_rules_are_alternatives(namespace: str, hits: bool) -> None:
    rules = [((Match(namespaces=(Exact(name),)),),) for name in ("a", "b")]

    peer = connection("127.0.0.1:1234", "127.0.0.2:80", SpiffeId("td", namespace, "account"))

    assert matches(policy(*rules), peer) is hits


@pytest.mark.parametrize(
    ("rule", "text", "hits"),
    [
        (Exact("foo"), "foo", True),
        (Exact("foo"), "not", False),
        (Exact("foo"), "", False),
        (Prefix("foo"), "foobar", True),
        (Prefix("foo"), "notfoo", False),
        (Prefix("foo"), "", False),
        (Suffix("foo"), "barfoo", True),
        (Suffix("foo"), "foonot", False),
        (Suffix("foo"), "", False),
        (Presence(), "foo", True),
        (Presence(), "", False),
    ],
)
def test_text_is_matched(rule: StringMatch, text: str, hits: bool) -> None:
    peer = connection("127.0.0.1:1", "127.0.0.2:80", SpiffeId("td", text, "account"))

    assert rule.hits(text) is hits
    assert matches(one(Match(namespaces=(rule,))), peer) is hits


def caller(account: str) -> InboundConnection:
    return connection("192.168.1.1:1234", "192.168.0.1:8080", SpiffeId("cluster.local", "default", account))


def principal(account: str) -> Exact:
    return Exact(f"cluster.local/ns/default/sa/{account}")


EVERYTHING: Rule = ((),)
FOO = policy(((Match(principals=(principal("defaultacct"),)),),), name="foo")
DENY = policy(((Match(principals=(principal("denyacct"),)),),), name="deny", action=Action.DENY)
DRY_ALLOW_ALL = policy(EVERYTHING, name="dry-allow", dry_run=True)
DRY_DENY_ALL = policy(EVERYTHING, name="dry-deny", dry_run=True, action=Action.DENY)
ALL_FOUR = [DRY_ALLOW_ALL, DRY_DENY_ALL, FOO, DENY]


def test_without_policies_everything_is_allowed() -> None:
    assert authorize(caller("not-defaultacct"), []) == Permit(None, (Note("no allow policies, allow"),))
    assert Judgement([]).authorize(PLAIN) == Permit(None, (Note("no allow policies, allow"),))


def test_an_allow_policy_names_the_rule_and_the_conditions_that_decided() -> None:
    verdict = authorize(caller("defaultacct"), ALL_FOUR)

    assert isinstance(verdict, Permit)
    assert verdict.decider == Decider("ns1/foo", 0, ("principals",))
    assert str(verdict.decider) == "rule 0, principals"
    assert verdict.notes == (
        Note("dry-run: deny policy match", "ns1/dry-deny"),
        Note("dry-run: allow policy match", "ns1/dry-allow"),
        Note("allow policy match", "ns1/foo"),
    )


def test_what_no_allow_policy_matches_is_rejected() -> None:
    verdict = authorize(caller("not-defaultacct"), ALL_FOUR)

    assert isinstance(verdict, Rejection)
    assert verdict.reason == "allow policies exist, but none allowed"
    assert verdict.decider is None
    assert verdict.notes[-1] == Note("no allow policies matched")


def test_a_deny_policy_wins_and_is_named() -> None:
    verdict = authorize(caller("denyacct"), ALL_FOUR)

    assert verdict == Rejection(
        "explicitly denied by: ns1/deny",
        Decider("ns1/deny", 0, ("principals",)),
        (Note("dry-run: deny policy match", "ns1/dry-deny"), Note("deny policy match", "ns1/deny")),
    )


def test_a_deny_policy_wins_over_an_allow_policy_that_matches_too() -> None:
    verdict = authorize(caller("denyacct"), [policy(EVERYTHING, name="all"), DENY])

    assert isinstance(verdict, Rejection)


def test_dry_run_policies_only_leave_notes() -> None:
    both = Match(principals=(principal("defaultacct"), principal("denyacct")))
    policies = [
        DENY,
        policy(((both,),), name="dry-run-deny", action=Action.DENY, dry_run=True),
        FOO,
        policy(((Match(principals=(principal("defaultacct"),)),),), name="dry-run-allow", dry_run=True),
    ]

    verdict = authorize(caller("defaultacct"), policies)

    assert isinstance(verdict, Permit)
    assert Note("dry-run: deny policy match", "ns1/dry-run-deny") in verdict.notes
    assert Note("dry-run: allow policy match", "ns1/dry-run-allow") in verdict.notes


def test_a_dry_run_allow_policy_that_would_have_shut_others_out_says_so() -> None:
    dry = policy(((Match(principals=(principal("defaultacct"),)),),), name="dry", dry_run=True)

    verdict = authorize(caller("other"), [dry])

    assert verdict == Permit(
        None, (Note("dry-run: no allow policies match"), Note("no allow policies, allow"))
    )


def test_a_dry_run_allow_policy_that_matches_says_so() -> None:
    verdict = authorize(TLS, [DRY_ALLOW_ALL])

    assert verdict == Permit(
        None, (Note("dry-run: allow policy match", "ns1/dry-allow"), Note("no allow policies, allow"))
    )


def test_an_allow_policy_without_rules_shuts_everybody_out() -> None:
    assert isinstance(authorize(TLS, [policy()]), Rejection)


def test_the_second_rule_is_named_when_it_decides_with_all_its_conditions() -> None:
    second: Rule = (
        (Match(namespaces=(Exact("namespace"),), not_source_ips=(net("10.0.0.0/8"),)),),
        (),
        (Match(destination_ports=(8080,)),),
    )

    verdict = authorize(TLS, [policy(((Match(),),), second)])

    assert isinstance(verdict, Permit)
    assert str(verdict.decider) == "rule 1, namespaces, not_source_ips, destination_ports"


def test_what_kept_allow_policies_from_matching_can_be_told() -> None:
    judgement = Judgement(
        [
            policy(
                (
                    (Match(destination_ports=(8080,)),),
                    (Match(destination_ports=(8080,), namespaces=(Exact("else"),)), Match()),
                ),
                name="near",
            ),
            DENY,
        ]
    )

    assert judgement.misses(TLS) == (Miss("ns1/near", 0, "namespaces"), Miss("ns1/near", 0, None))
    assert judgement.misses(connection("1.1.1.1:1", "2.2.2.2:2"))[0].field == "destination_ports"
