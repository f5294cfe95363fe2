"""The rules are those istio-cni leaves in a pod; the kernel's own listing of them is compared by hand."""

from ztunnel_trio.lab.netlink import Chain, Expression, Table
from ztunnel_trio.lab.redirect import tables


def chain(table: Table, name: str) -> Chain:
    return next(one for one in table.chains if one.name == name)


def names(rule: tuple[Expression, ...] | list[Expression]) -> list[str]:
    return [expression.name for expression in rule]


def test_a_pod_gets_three_tables_and_without_dns_capture_two() -> None:
    assert [table.name for table in tables(dns=True)] == [
        "istio-ambient-nat",
        "istio-ambient-mangle",
        "istio-ambient-raw",
    ]
    assert [table.name for table in tables(dns=False)] == ["istio-ambient-nat", "istio-ambient-mangle"]


def test_the_mangle_output_chain_is_of_type_route() -> None:
    base = chain(tables(dns=True)[1], "output").base

    assert base is not None
    assert (base.kind, base.hook, base.priority) == ("route", 3, -150)


def test_priorities_and_types_are_istios() -> None:
    found = {
        (table.name, one.name): (one.base.kind, one.base.priority)
        for table in tables(dns=True)
        for one in table.chains
        if one.base is not None
    }

    assert found == {
        ("istio-ambient-nat", "prerouting"): ("nat", -100),
        ("istio-ambient-nat", "output"): ("nat", -100),
        ("istio-ambient-mangle", "prerouting"): ("filter", -150),
        ("istio-ambient-mangle", "output"): ("route", -150),
        ("istio-ambient-raw", "prerouting"): ("filter", -300),
        ("istio-ambient-raw", "output"): ("filter", -300),
    }


def test_chains_come_before_those_that_jump_to_them() -> None:
    for table in tables(dns=True):
        assert [one.name for one in table.chains] == [
            "istio-prerouting",
            "istio-output",
            "prerouting",
            "output",
        ]


def test_the_nat_chains_have_as_many_rules_as_istios() -> None:
    nat = tables(dns=True)[0]

    assert len(chain(nat, "istio-prerouting").rules) == 4
    assert len(chain(nat, "istio-output").rules) == 10
    assert len(chain(tables(dns=False)[0], "istio-output").rules) == 7


def test_every_rule_counts_its_packets() -> None:
    for table in tables(dns=True):
        for one in table.chains:
            if one.base is None:
                assert all("counter" in names(list(rule)) for rule in one.rules)
