"""What is tried next, from values alone: the refusal, the route, what was tried, the time."""

from dataclasses import replace
from ipaddress import ip_address

import pytest

from ztunnel_trio.decide.known import Known
from ztunnel_trio.decide.retry import (
    FAILED_SECONDS,
    MOST_FAILED,
    Address,
    Another,
    GiveUp,
    RecentFailures,
    Tries,
    after,
    at_address,
    is_timeout,
    may_help_elsewhere,
)
from ztunnel_trio.decide.route import Route
from ztunnel_trio.model.address import HostPort, SocketAddress
from ztunnel_trio.model.ending import (
    AnsweredStatus,
    DeadlinePassed,
    NoAnswer,
    NotProcessed,
    PeerUnexpected,
    SystemFailure,
)
from ztunnel_trio.model.refusal import Reason, Refusal
from ztunnel_trio.model.service import Service
from ztunnel_trio.model.workload import OutboundProtocol, Workload

V4, V6, THIRD = ip_address("10.0.0.1"), ip_address("fd00::1"), ip_address("10.0.0.3")
DUAL = Workload(uid="pod", name="pod", namespace="ns", addresses=(V4, V6))
SINGLE = replace(DUAL, addresses=(V4,))
NAMED = replace(DUAL, addresses=(), hostname="db.example")
SERVICE = Service(name="web", namespace="ns", hostname="web.ns")
ROUTE = Route(
    OutboundProtocol.HBONE,
    SocketAddress(V6, 15008),
    SocketAddress(V6, 8080),
    (),
    (),
    DUAL,
    SERVICE,
)
REFUSED = Refusal(Reason.IO, cause=SystemFailure(111))
TIMEOUT = Refusal(Reason.HBONE_CONNECT_TIMEOUT, cause=DeadlinePassed())
UNAVAILABLE = Refusal(Reason.HTTP_STATUS, cause=AnsweredStatus(503))
TRIES = Tries(deadline=10.0, left=2)


@pytest.mark.parametrize(
    ("refusal", "expected"),
    [
        (REFUSED, True),
        (TIMEOUT, True),
        (Refusal(Reason.H2, cause=NotProcessed(7)), True),
        (Refusal(Reason.H2, cause=NoAnswer()), True),
        (Refusal(Reason.IO, cause=PeerUnexpected((), ())), True),
        (Refusal(Reason.NO_RESOLVED_ADDRESSES, "pod"), True),
        (UNAVAILABLE, True),
        (Refusal(Reason.HTTP_STATUS, cause=AnsweredStatus(401)), False),
        (Refusal(Reason.HTTP_STATUS, cause=AnsweredStatus(400)), False),
        (Refusal(Reason.IDENTITY, "none"), False),
        (Refusal(Reason.TLS_CONFIG, "bad"), False),
    ],
)
def test_what_another_endpoint_may_do_better(refusal: Refusal, expected: bool) -> None:
    assert may_help_elsewhere(refusal) is expected


def test_timeouts_are_told_from_refusals() -> None:
    assert is_timeout(TIMEOUT)
    assert is_timeout(Refusal(Reason.IO, cause=DeadlinePassed()))
    assert not is_timeout(REFUSED)


@pytest.mark.parametrize("refusal", [REFUSED, TIMEOUT, UNAVAILABLE])
def test_another_address_of_the_endpoint_comes_first(refusal: Refusal) -> None:
    found = after(refusal, ROUTE, TRIES.at(ROUTE), Known(), now=1)

    there = replace(ROUTE, destination=SocketAddress(V4, 15008), authority=SocketAddress(V4, 8080))
    assert found == Address(there)
    assert after(refusal, there, TRIES.at(ROUTE).at(there), Known(), now=1) == Another(refusal is TIMEOUT)


def test_an_application_that_refused_is_not_asked_again_on_ipv6() -> None:
    route = at_address(ROUTE, V4)
    assert after(UNAVAILABLE, route, TRIES.at(route), Known(), now=1) == Another(or_same=False)
    assert after(REFUSED, route, TRIES.at(route), Known(), now=1) == Address(at_address(ROUTE, V6))


def test_the_addresses_of_a_name_are_tried_in_the_family_of_the_first() -> None:
    plain = Route(OutboundProtocol.TCP, SocketAddress(V4, 80), None, (), (), NAMED, SERVICE)
    known = Known().with_host("pod", (V6, V4, THIRD))

    found = after(REFUSED, plain, TRIES.at(plain), known, now=1)
    assert found == Address(replace(plain, destination=SocketAddress(THIRD, 80)))


def test_not_all_of_many_addresses_are_tried() -> None:
    many = tuple(ip_address("10.1.0.0") + n for n in range(9))
    route = Route(OutboundProtocol.TCP, SocketAddress(many[0], 80), None, (), (), NAMED, SERVICE)
    tries, known, dialled = TRIES, Known().with_host("pod", many), 0
    while True:
        dialled += 1
        tries = tries.at(route)
        found = after(REFUSED, route, tries, known, now=1)
        if not isinstance(found, Address):
            break
        route = found.route
    assert (dialled, found) == (4, Another(or_same=False))


def test_a_gateways_name_stays_the_authority_whatever_address_is_dialled() -> None:
    double = replace(ROUTE, authority=HostPort("far.example", 80))

    assert at_address(double, V4).authority == HostPort("far.example", 80)


@pytest.mark.parametrize(
    ("refusal", "change", "now"),
    [
        (Refusal(Reason.HTTP_STATUS, cause=AnsweredStatus(401)), {}, 1),
        (REFUSED, {"service": None}, 1),
        (REFUSED, {}, 10),
    ],
    ids=["refused there", "the client's own address", "no time left"],
)
def test_what_nothing_else_helps(refusal: Refusal, change: dict[str, object], now: float) -> None:
    route = replace(ROUTE, **change)  # type: ignore[arg-type]
    assert after(refusal, route, TRIES.at(route), Known(), now) == GiveUp()


def test_other_endpoints_are_counted_and_addresses_are_not() -> None:
    route = replace(ROUTE, workload=SINGLE, destination=SocketAddress(V4, 15008))
    tries = TRIES.at(route)
    assert after(REFUSED, route, tries, Known(), now=1) == Another(or_same=False)
    tries = tries.elsewhere().at(route).elsewhere().at(route)
    assert after(REFUSED, route, tries, Known(), now=1) == GiveUp()


def test_a_request_that_was_not_processed_may_go_to_the_same_endpoint_again() -> None:
    refusal = Refusal(Reason.H2, cause=NotProcessed(0))
    assert after(refusal, ROUTE, TRIES.at(ROUTE), Known(), now=1) == Another(or_same=True)


def test_time_is_shared_among_those_that_may_be_tried() -> None:
    tries = Tries(deadline=9, left=2)
    assert tries.share(0, now=0) == pytest.approx(9)
    assert tries.share(1, now=0) == pytest.approx(4.5)
    assert tries.share(2, now=3) == pytest.approx(2)
    assert tries.share(2, now=10) == 0


def test_endpoints_that_failed_lately_are_passed_over_for_a_while() -> None:
    failures = RecentFailures()
    failures.note("a", 100)
    failures.note("b", 104)
    assert failures.lately(105) == {"a", "b"}
    assert failures.lately(100 + FAILED_SECONDS) == {"b"}
    failures.note("a", 111)
    failures.forgive("b")
    failures.forgive("nobody")
    assert failures.lately(112) == {"a"}
    assert failures.lately(200) == frozenset()


def test_failures_are_bounded() -> None:
    failures = RecentFailures()
    for n in range(MOST_FAILED + 10):
        failures.note(str(n), 1)
    assert len(failures.lately(1)) == MOST_FAILED
    assert "9" not in failures.lately(1)
