"""Text rules of policies; how they combine is `decide.authorize`'s."""

import pytest

from ztunnel_trio.model.policy import (
    Action,
    Authorization,
    Exact,
    PolicyScope,
    Prefix,
    Presence,
    StringMatch,
    Suffix,
)


@pytest.mark.parametrize(
    ("rule", "text", "hits"),
    [
        (Exact("foo"), "foo", True),
        (Exact("foo"), "not", False),
        (Exact("foo"), "Foo", False),
        (Prefix("foo"), "foobar", True),
        (Prefix("foo"), "notfoo", False),
        (Prefix(""), "", True),
        (Suffix("foo"), "barfoo", True),
        (Suffix("foo"), "foonot", False),
        (Suffix(""), "", True),
        (Presence(), "foo", True),
        (Presence(), "", False),
    ],
)
def test_a_rule_hits_its_text(rule: StringMatch, text: str, hits: bool) -> None:
    assert rule.hits(text) is hits


def test_a_policy_is_known_by_namespace_and_name() -> None:
    policy = Authorization(name="deny", namespace="ns1", scope=PolicyScope.GLOBAL, action=Action.DENY)

    assert policy.key == "ns1/deny"
