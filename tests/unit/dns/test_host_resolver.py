from collections.abc import Callable
from ipaddress import ip_address

import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
import trio

from tests.fakes.cancellation import cancelled_everywhere_now
from tests.fakes.trio_test import trio_test
from tests.fakes.upstream_dns import FACTORY, Answer, Upstream, silent, upstream, zone
from ztunnel_trio.dns.forward import Budget, Forwarder
from ztunnel_trio.dns.host_resolver import HostResolver, candidates
from ztunnel_trio.dns.resolv_conf import ResolvConf
from ztunnel_trio.model.address import IPAddress, SocketAddress

SERVER = SocketAddress(ip_address("127.0.0.1"), 53)


def resolver(
    *servers: Upstream,
    hosts: dict[str, tuple[IPAddress, ...]] | None = None,
    ipv6: bool = True,
    ndots: int = 1,
) -> HostResolver:
    conf = ResolvConf(
        servers=tuple(server.address for server in servers) or (SERVER,),
        search=("search.local",),
        ndots=ndots,
    )
    return HostResolver(Forwarder(FACTORY, conf), hosts or {}, ipv6=ipv6)


def ips(*texts: str) -> tuple[IPAddress, ...]:
    return tuple(ip_address(text) for text in texts)


def asked(server: Upstream) -> list[tuple[str, str]]:
    questions = [dns.message.from_wire(message).question[0] for message in server.asked]
    return [(one.name.to_text(), dns.rdatatype.to_text(one.rdtype)) for one in questions]


@pytest.mark.parametrize(
    ("hostname", "ndots", "tried"),
    [
        (
            "www.example.com",
            1,
            ["www.example.com", "www.example.com.dom", "www.example.com.s1", "www.example.com.s2"],
        ),
        (
            "www.example.com",
            5,
            ["www.example.com.dom", "www.example.com.s1", "www.example.com.s2", "www.example.com"],
        ),
        ("a.b", 2, ["a.b.dom", "a.b.s1", "a.b.s2", "a.b"]),
        ("a", 0, ["a", "a.dom", "a.s1", "a.s2"]),
        ("www.example.com.", 5, ["www.example.com"]),
    ],
)
def test_names_are_completed_from_the_search_list(hostname: str, ndots: int, tried: list[str]) -> None:
    conf = ResolvConf(servers=(SERVER,), domain="dom", search=("s1", "s2"), ndots=ndots)

    assert [".".join(name) for name in candidates(hostname, conf)] == tried


def test_equal_candidates_are_tried_once() -> None:
    conf = ResolvConf(servers=(SERVER,), domain="s1", search=("s1",))

    assert candidates("a", conf) == [("a", "s1"), ("a",)]


BOTH = zone({("www.example.com.", "A"): ["1.1.1.1", "1.1.1.2"], ("www.example.com.", "AAAA"): ["fd00::1"]})


@trio_test
async def test_a_name_has_the_addresses_of_both_families() -> None:
    async with upstream(BOTH) as server:
        assert await resolver(server).resolve("www.example.com") == ips("1.1.1.1", "1.1.1.2", "fd00::1")
        assert sorted(asked(server)) == [("www.example.com.", "A"), ("www.example.com.", "AAAA")]


@trio_test
async def test_without_ipv6_only_a_is_asked() -> None:
    async with upstream(BOTH) as server:
        assert await resolver(server, ipv6=False).resolve("www.example.com") == ips("1.1.1.1", "1.1.1.2")
        assert asked(server) == [("www.example.com.", "A")]


@trio_test
async def test_one_family_failing_does_not_matter() -> None:
    answer = zone({("www.example.com.", "A"): 2, ("www.example.com.", "AAAA"): ["fd00::1"]})

    async with upstream(answer) as server:
        assert await resolver(server).resolve("www.example.com") == ips("fd00::1")


@trio_test
async def test_the_first_name_with_an_answer_wins() -> None:
    answer = zone({("short.search.local.", "A"): ["1.1.1.1"], ("short.", "A"): ["2.2.2.2"]})

    async with upstream(answer) as server:
        assert await resolver(server).resolve("short") == ips("1.1.1.1")


@pytest.mark.parametrize("code", [2, 3, 5])
def test_a_failed_lookup_is_none(code: int) -> None:
    @trio_test
    async def run() -> None:
        records = {("www.example.com.", kind): code for kind in ("A", "AAAA")}
        async with upstream(zone(dict.fromkeys(records, code))) as server:
            assert await resolver(server).resolve("www.example.com.") is None

    run()


@trio_test
async def test_an_answer_without_addresses_is_empty() -> None:
    def answer(message: bytes) -> list[bytes]:
        query = dns.message.from_wire(message)
        reply = dns.message.make_response(query)
        reply.answer.append(dns.rrset.from_text(query.question[0].name, 60, "IN", "CNAME", "elsewhere."))
        return [reply.to_wire()]

    async with upstream(answer) as server:
        assert await resolver(server).resolve("www.example.com") == ()


@trio_test(autojump=True)
async def test_a_silent_server_fails_the_lookup_when_the_time_is_over() -> None:
    async with upstream(silent) as server:
        assert await resolver(server).resolve("www.example.com.") is None

    assert trio.current_time() == pytest.approx(15)


@pytest.mark.parametrize("hostname", ["*..x.", "x" * 70 + ".", "\N{SNOWMAN}" * 70 + "."])
def test_what_is_no_name_fails_without_being_asked(hostname: str) -> None:
    @trio_test
    async def run() -> None:
        async with upstream(BOTH) as server:
            assert await resolver(server).resolve(hostname) is None
            assert server.asked == []

    run()


@trio_test
async def test_an_address_is_itself() -> None:
    assert await resolver().resolve("127.0.0.4") == ips("127.0.0.4")
    assert await resolver().resolve("fd00::1") == ips("fd00::1")


@trio_test
async def test_the_hosts_file_comes_first() -> None:
    hosts = {"www.example.com": ips("fd00::9", "9.9.9.9")}

    assert await resolver(hosts=hosts).resolve("WWW.example.com.") == ips("9.9.9.9", "fd00::9")
    assert await resolver(hosts=hosts, ipv6=False).resolve("www.example.com") == ips("9.9.9.9")


@trio_test(autojump=True)
async def test_answers_are_kept_as_long_as_they_say() -> None:
    async with upstream(BOTH) as server:
        resolve = resolver(server).resolve
        for seconds in (0, 59.9, 0.2):
            await trio.sleep(seconds)
            assert await resolve("www.example.com.")

    assert len(server.asked) == 4


def negative(minimum: int | None) -> Answer:
    def answer(message: bytes) -> list[bytes]:
        reply = dns.message.make_response(dns.message.from_wire(message))
        reply.set_rcode(dns.rcode.NXDOMAIN)
        if minimum is not None:
            soa = f"ns.example.com. x.example.com. 1 2 3 4 {minimum}"
            reply.authority.append(dns.rrset.from_text("example.com.", 600, "IN", "SOA", soa))
        return [reply.to_wire()]

    return answer


@pytest.mark.parametrize(("minimum", "lookups"), [(None, 4), (20, 2), (5, 4)])
def test_failures_are_kept_as_long_as_their_soa_says(minimum: int | None, lookups: int) -> None:
    @trio_test(autojump=True)
    async def run() -> None:
        async with upstream(negative(minimum)) as server:
            resolve = resolver(server).resolve
            assert await resolve("www.example.com.") is None
            await trio.sleep(10)
            assert await resolve("www.example.com.") is None

        assert len(server.asked) == lookups

    run()


@trio_test
async def test_the_cache_forgets_what_was_not_used_longest() -> None:
    records: dict[tuple[str, str], list[str] | int] = {(f"{name}.", "A"): ["1.1.1.1"] for name in "abc"}
    async with upstream(zone(records)) as server:
        hosts = resolver(server, ipv6=False)
        hosts.entries = 2
        for name in "abacab":
            await hosts.resolve(f"{name}.")

    assert [name for name, _ in asked(server)] == ["a.", "b.", "c.", "b."]


@trio_test
async def test_equal_lookups_share_one_exchange() -> None:
    results: list[tuple[IPAddress, ...] | None] = []

    async with upstream(BOTH) as server:
        hosts = resolver(server)

        async def look_up() -> None:
            results.append(await hosts.resolve("www.example.com."))

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(look_up)

    assert results == [ips("1.1.1.1", "1.1.1.2", "fd00::1")] * 10
    assert len(server.asked) == 2


@trio_test(autojump=True)
async def test_when_the_one_who_asks_is_cancelled_another_takes_over() -> None:
    answers: list[Callable[[bytes], list[bytes]]] = [silent]
    results: list[tuple[IPAddress, ...] | None] = []

    async with upstream(lambda message: answers[0](message)) as server:
        hosts = resolver(server, ipv6=False)

        async def look_up() -> None:
            results.append(await hosts.resolve("www.example.com."))

        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as first:
                async with trio.open_nursery() as inner:
                    inner.start_soon(look_up)
                    await trio.sleep(1)
                    for _ in range(3):
                        nursery.start_soon(look_up)
                    await trio.sleep(1)
                    answers[0] = BOTH
                    first.cancel()

    assert results == [ips("1.1.1.1", "1.1.1.2")] * 3
    assert len(server.asked) == 2


@trio_test
async def test_lookups_over_the_budget_fail_at_once() -> None:
    async with upstream(BOTH) as server:
        hosts = resolver(server)
        hosts.budget = Budget(0)

        assert await hosts.resolve("www.example.com.") is None
        assert server.asked == []


def test_a_lookup_cancelled_at_any_step_leaves_nothing() -> None:
    async def scenario() -> None:
        async with upstream(BOTH) as server:
            hosts = resolver(server)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(hosts.resolve, "www.example.com")
                nursery.start_soon(hosts.resolve, "www.example.com")
            assert hosts.budget.used == 0

    assert cancelled_everywhere_now(scenario) > 3
