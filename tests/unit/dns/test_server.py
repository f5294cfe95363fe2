import logging
import random
import socket
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address, ip_address

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.update
import pytest
import trio
import trio.testing

from tests.fakes.cancellation import cancelled_everywhere_now
from tests.fakes.dns_mesh import CLIENT, external, kubernetes, mesh_of, pod, reference_mesh
from tests.fakes.trio_test import trio_test
from tests.fakes.upstream_dns import FACTORY, Answer, Upstream, silent, upstream, zone
from ztunnel_trio.decide.answer import NameSettings
from ztunnel_trio.dns.forward import Budget, Forwarder
from ztunnel_trio.dns.framing import MessageStream
from ztunnel_trio.dns.resolv_conf import ResolvConf
from ztunnel_trio.dns.server import DnsServer, LoopbackPort, bind
from ztunnel_trio.dns.settings import DnsSettings
from ztunnel_trio.live_mesh import LiveMesh
from ztunnel_trio.mesh.entries import ServiceEntry, workload_entry
from ztunnel_trio.mesh.mesh import Batch, Mesh
from ztunnel_trio.model.address import SocketAddress
from ztunnel_trio.net.sockets import BindFailed
from ztunnel_trio.supervise.drain import Drain

SETTINGS = DnsSettings(names=NameSettings(preferred_namespace="preferred-ns"))
BING = zone({("www.bing.com.", "A"): ["1.1.1.1"]})


@dataclass
class Counts:
    requests: Counter[tuple[str, ...]] = field(default_factory=Counter)
    upstream: Counter[tuple[str, ...]] = field(default_factory=Counter)
    failures: Counter[tuple[str, ...]] = field(default_factory=Counter)
    durations: list[float] = field(default_factory=list)
    unread: int = 0

    def dns_request(self, labels: Sequence[str]) -> None:
        self.requests[*labels] += 1

    def dns_upstream_request(self, labels: Sequence[str]) -> None:
        self.upstream[*labels] += 1

    def dns_upstream_failure(self, labels: Sequence[str]) -> None:
        self.failures[*labels] += 1

    def dns_upstream_duration(self, labels: Sequence[str], seconds: float) -> None:
        self.durations.append(seconds)

    def dns_unread(self, count: int) -> None:
        self.unread += count


@dataclass
class Running:
    server: DnsServer
    udp: SocketAddress
    tcp: SocketAddress
    upstream: Upstream
    live: LiveMesh
    counts: Counts
    drain: Drain

    async def ask(
        self, name: str, kind: str = "A", *, tcp: bool = False, payload: int | None = None
    ) -> dns.message.Message:
        edns = None if payload is None else 0
        query = dns.message.make_query(name, kind, use_edns=edns, payload=payload)
        if tcp:
            async with self.connected() as stream:
                await stream.send(query.to_wire())
                reply = await stream.receive()
        else:
            reply = await self.exchange(query.to_wire())
        assert reply is not None
        parsed = dns.message.from_wire(reply)
        assert parsed.id == query.id
        return parsed

    async def exchange(self, message: bytes) -> bytes:
        with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            await sock.connect((str(self.udp.ip), self.udp.port))
            await sock.send(message)
            return await sock.recv(65535)

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[MessageStream]:
        stream = await trio.open_tcp_stream(str(self.tcp.ip), self.tcp.port)
        try:
            yield MessageStream(stream)
        finally:
            stream.socket.close()


@asynccontextmanager
async def running(
    mesh: Mesh | None = None,
    answer: Answer = BING,
    *,
    settings: DnsSettings = SETTINGS,
    budget: Budget | None = None,
    timeout: float = 5,
) -> AsyncIterator[Running]:
    async with upstream(answer) as server:
        sockets = bind(FACTORY, SocketAddress(IPv4Address("127.0.0.1"), 0), ipv6=True)
        with sockets:
            live, counts, drain = LiveMesh(mesh or reference_mesh()), Counts(), Drain(5)
            dns_server = DnsServer(
                sockets=sockets,
                live=live,
                client=CLIENT.info,
                forwarder=Forwarder(FACTORY, ResolvConf(servers=(server.address,), timeout_seconds=timeout)),
                settings=settings,
                metrics=counts,
                rng=random.Random(1),
                budget=budget,
            )
            udp = SocketAddress(IPv4Address("127.0.0.1"), sockets.udp[0].getsockname()[1])
            async with trio.open_nursery() as nursery:
                await nursery.start(dns_server.run, drain)
                yield Running(dns_server, udp, sockets.tcp[0].address, server, live, counts, drain)
                nursery.cancel_scope.cancel()


def texts(message: dns.message.Message) -> list[str]:
    return sorted(f"{r.name} {dns.rdatatype.to_text(r.rdtype)} {d}" for r in message.answer for d in r)


AA, RA, RD, QR = dns.flags.AA, dns.flags.RA, dns.flags.RD, dns.flags.QR
V6 = "2001:db8::ff00:42:8329"
DETAILS = "details.ns2.svc.cluster.remote."
LONG = "foo.svc.mesh.company.net.ns1.svc.cluster.local."


@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("productpage.ns1.", "NS", "NXDOMAIN"),
        ("www.google.com", "A", ["www.google.com. A 1.1.1.1"]),
        (
            "www.google.com.ns1.svc.cluster.local.",
            "A",
            ["www.google.com. A 1.1.1.1", "www.google.com.ns1.svc.cluster.local. CNAME www.google.com."],
        ),
        ("www.bing.com", "A", "www.bing.com. A 1.1.1.1"),
        ("productpage.ns1.svc.cluster.local.", "A", ["productpage.ns1.svc.cluster.local. A 9.9.9.9"]),
        ("productpage.ns1.", "A", ["productpage.ns1. A 9.9.9.9"]),
        ("productpage.", "A", ["productpage. A 9.9.9.9"]),
        (
            "productpage.ns1.ns1.svc.cluster.local.",
            "A",
            ["productpage.ns1. A 9.9.9.9", "productpage.ns1.ns1.svc.cluster.local. CNAME productpage.ns1."],
        ),
        ("productpage.ns1.ns1.svc.cluster.local.", "AAAA", []),
        ("example.ns2.", "A", ["example.ns2. A 10.10.10.10"]),
        ("example.ns2.svc.cluster.local.", "A", ["example.ns2.svc.cluster.local. A 10.10.10.10"]),
        ("nslocal.ns2.svc.cluster.local.", "A", "NXDOMAIN"),
        ("nslocalsame.ns1.svc.cluster.local.", "A", ["nslocalsame.ns1.svc.cluster.local. A 10.10.10.241"]),
        ("example.ns2.svc.", "A", ["example.ns2.svc. A 10.10.10.10"]),
        ("example.", "A", "NXDOMAIN"),
        (DETAILS, "A", [f"{DETAILS} A {n}.{n}.{n}.{n}" for n in (11, 12, 13, 14)]),
        ("details.ns2.", "A", "NXDOMAIN"),
        ("dual.localhost.", "A", ["dual.localhost. A 2.2.2.2"]),
        ("dual.localhost.", "AAAA", [f"dual.localhost. AAAA {V6}"]),
        ("ipv6.localhost.", "A", []),
        ("ipv4.localhost.", "AAAA", []),
        ("foo.wildcard.", "A", ["foo.wildcard. A 10.10.10.10"]),
        ("a.b.wildcard.", "A", ["a.b.wildcard. A 11.11.11.11"]),
        ("foo.svc.mesh.company.net.", "A", ["foo.svc.mesh.company.net. A 10.1.2.3"]),
        ("foo.foons.svc.mesh.company.net.", "A", ["foo.foons.svc.mesh.company.net. A 10.1.2.3"]),
        (LONG, "A", [f"{LONG} A 10.1.2.3"]),
        ("nw2-only.ns1.svc.cluster.local.", "A", []),
        ("both-networks.ns1.svc.cluster.local.", "A", ["both-networks.ns1.svc.cluster.local. A 21.21.21.21"]),
        (
            "headless.ns1.svc.cluster.local.",
            "A",
            [f"headless.ns1.svc.cluster.local. A {ip}" for ip in ("30.30.30.30", "31.31.31.31")],
        ),
        (
            "headless.ns1.svc.cluster.local.",
            "AAAA",
            [f"headless.ns1.svc.cluster.local. AAAA {ip}" for ip in ("2001:db8::30", "2001:db8::31")],
        ),
        (
            "headless-ipv6.ns1.svc.cluster.local.",
            "AAAA",
            ["headless-ipv6.ns1.svc.cluster.local. AAAA 2001:db8::33"],
        ),
        ("headless-ipv6.ns1.svc.cluster.local.", "A", []),
        ("headless.pod0.ns1.svc.cluster.local.", "A", "NXDOMAIN"),
        ("headless.pod0.ns1.", "A", "NXDOMAIN"),
        ("headless-no-endpoints.example.com", "A", "NXDOMAIN"),
        ("headless.example.com", "A", "NXDOMAIN"),
        ("preferred.io.", "A", ["preferred.io. A 10.10.10.211"]),
        ("everywhere.io.", "A", ["everywhere.io. A 10.10.10.112"]),
        ("canonical.svc", "A", ["canonical.svc. A 10.10.10.141"]),
        ("canonical.with.local", "A", ["canonical.with.local. A 10.10.10.150"]),
    ],
)
def test_names_are_answered_as_the_mesh_has_them(
    name: str, kind: str, expected: list[str] | str, tcp: bool
) -> None:
    """A list is an answer of the mesh, a text one of the resolver upstream."""

    @trio_test
    async def run() -> None:
        async with running() as server:
            reply = await server.ask(name, kind, tcp=tcp)

        if isinstance(expected, list):
            assert (reply.rcode(), texts(reply)) == (dns.rcode.NOERROR, expected)
            assert reply.flags == QR | AA | RA | RD
            assert {r.ttl for r in reply.answer} <= {30}
            assert server.upstream.asked == []
        else:
            assert [*texts(reply), dns.rcode.to_text(reply.rcode())][0] == expected
            assert not reply.flags & AA
            assert len(server.upstream.asked) == 1
        assert (reply.authority, reply.additional) == ([], [])

    run()


@trio_test
async def test_the_resolvers_own_bytes_come_back() -> None:
    extra = bytes.fromhex("c00c 0010 0001 0000003c 0002 0178".replace(" ", ""))

    def answer(message: bytes) -> list[bytes]:
        return [message[:2] + b"\x85\xa0\0\1\0\0\0\1\0\0" + message[12:] + extra]

    async with running(answer=answer) as server:
        query = dns.message.make_query("x.example.org", "TXT", id=9).to_wire()

        assert await server.exchange(query) == answer(query)[0]


@trio_test
async def test_other_operations_are_passed_on() -> None:
    update = dns.update.UpdateMessage("example.org").to_wire()

    async with running(answer=lambda message: [message[:2] + b"\xa8\5" + bytes(8)]) as server:
        assert await server.exchange(update) == update[:2] + b"\xa8\5" + bytes(8)
        assert list(server.counts.requests) == [("unknown", "udp", "client-app", "v1")]


@trio_test
async def test_several_messages_share_a_connection_and_keep_their_order() -> None:
    async with running() as server, server.connected() as stream:
        names = ["productpage.", "www.bing.com.", "www.google.com.", "nothing.at.all."]
        for name in names:
            await stream.send(dns.message.make_query(name, "A").to_wire())
        replies = [dns.message.from_wire(await stream.receive() or b"") for _ in names]

    assert [reply.question[0].name.to_text() for reply in replies] == names


@trio_test
async def test_a_large_answer_is_whole_by_tcp_and_cut_by_udp() -> None:
    service = kubernetes("large", "ns1")
    mesh = mesh_of([service], *[pod(f"p{n}", f"240.0.0.{n}", backs=service) for n in range(256)])

    async with running(mesh) as server:
        assert len(texts(await server.ask("large.", tcp=True))) == 256
        for payload, limit in ((None, 512), (1232, 1232)):
            reply = await server.ask("large.", payload=payload)
            assert reply.flags & dns.flags.TC
            assert limit - 20 < len(reply.wire or b"") <= limit


@trio_test
async def test_an_upstream_answer_over_the_clients_size_is_cut() -> None:
    answer = zone({("large.com.", "A"): [f"240.0.0.{n}" for n in range(256)]})

    async with running(answer=answer) as server:
        cut = await server.ask("large.com.")
        whole = await server.ask("large.com.", tcp=True)

    assert (cut.flags & dns.flags.TC, texts(cut)) == (dns.flags.TC, [])
    assert len(texts(whole)) == 256


@pytest.mark.parametrize("message", [b"", b"\0" * 11, b"\0\1\x80\0\0\1" + b"\0" * 20])
def test_what_deserves_no_answer_gets_none(message: bytes) -> None:
    @trio_test
    async def run() -> None:
        async with running() as server:
            with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                await sock.connect((str(server.udp.ip), server.udp.port))
                await sock.send(message)
                await sock.send(dns.message.make_query("productpage.", "A", id=5).to_wire())
                assert (await sock.recv(512))[:2] == b"\0\5"
            async with server.connected() as stream:
                await stream.send(message)
                assert await stream.receive() is None

    run()


@trio_test
async def test_a_malformed_message_is_a_format_error_by_either_way() -> None:
    message = b"\0\7\1\0\0\1\0\0\0\0\0\0\xc0\x0c\0\1\0\1"

    async with running() as server:
        assert await server.exchange(message) == b"\0\7\x81\1" + bytes(8)
        async with server.connected() as stream:
            await stream.send(message)
            assert await stream.receive() == b"\0\7\x81\1" + bytes(8)


@trio_test
async def test_localhost_is_answered_here_whatever_is_asked() -> None:
    async with running(mesh_of([])) as server:
        assert texts(await server.ask("localhost.")) == ["localhost. A 127.0.0.1"]
        assert texts(await server.ask("X.LOCALHOST.", "AAAA")) == ["x.localhost. AAAA ::1"]
        other = await server.ask("x.localhost.", "MX")
        assert (other.rcode(), other.answer) == (dns.rcode.NOERROR, [])
        assert server.upstream.asked == []


@trio_test(autojump=True)
async def test_a_client_the_mesh_does_not_know_yet_is_waited_for() -> None:
    mesh = reference_mesh()
    mesh.apply(Batch(removed_addresses=[CLIENT.uid]))

    async with running(mesh) as server:
        reply = await server.ask("productpage.")
        assert reply.rcode() == dns.rcode.SERVFAIL
        assert trio.current_time() == pytest.approx(5)
        assert list(server.counts.requests) == [("a", "udp", "unknown", "unknown")]

        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def come() -> None:
                await trio.sleep(1)
                server.live.apply(Batch(addresses=[workload_entry(CLIENT)]))

            assert texts(await server.ask("productpage.", tcp=True)) == ["productpage. A 9.9.9.9"]


@trio_test
async def test_a_change_of_the_mesh_counts_at_once() -> None:
    mesh = mesh_of([external("x.io", "ns1", "10.0.0.1")])

    async with running(mesh) as server:
        assert texts(await server.ask("x.io.")) == ["x.io. A 10.0.0.1"]
        moved = ServiceEntry(external("x.io", "ns1", "10.0.0.2"))
        server.live.apply(Batch(addresses=[moved, workload_entry(replace(CLIENT, canonical_name="renamed"))]))
        assert texts(await server.ask("x.io.")) == ["x.io. A 10.0.0.2"]

    assert [labels[2] for labels in server.counts.requests] == ["client-app", "renamed"]


@trio_test
async def test_kept_answers_are_told_apart_by_all_that_shapes_them() -> None:
    async with running() as server:
        for _ in range(2):
            plain = await server.ask("productpage.")
            edns = await server.ask("productpage.", payload=1232)
            capital = await server.ask("PRODUCTPAGE.")
            by_tcp = await server.ask("productpage.", tcp=True)
            assert (plain.edns, edns.edns, edns.payload) == (-1, 0, 1232)
            assert capital.question[0].name.to_text() == "PRODUCTPAGE."
            assert texts(plain) == texts(edns) == texts(capital) == texts(by_tcp)

    assert server.counts.requests == {
        ("a", "udp", "client-app", "v1"): 6,
        ("a", "tcp", "client-app", "v1"): 2,
    }


@trio_test
async def test_kept_answers_are_bounded() -> None:
    async with running(settings=replace(SETTINGS, kept_answers=4)) as server:
        for n in range(20):
            await server.ask(f"x{n}.wildcard.")

        assert len(server.server._answers._answers.kept) == 4


@trio_test(autojump=True)
async def test_a_silent_resolver_costs_the_query_its_time_and_nobody_else() -> None:
    async with running(answer=silent) as server, trio.open_nursery() as nursery:

        @nursery.start_soon
        async def wait() -> None:
            assert (await server.ask("www.bing.com.")).rcode() == dns.rcode.SERVFAIL
            assert trio.current_time() == pytest.approx(15)

        await trio.sleep(1)
        assert texts(await server.ask("productpage.")) == ["productpage. A 9.9.9.9"]
        assert trio.current_time() == pytest.approx(1)

    labels = ("a", "udp", "client-app", "v1")
    assert (server.counts.requests[labels], server.counts.upstream[labels]) == (2, 1)
    assert server.counts.failures[labels] == 1
    assert server.counts.durations == pytest.approx([15])


@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
def test_more_queries_in_flight_than_allowed_fail_at_once(tcp: bool) -> None:
    @trio_test(autojump=True)
    async def run() -> None:
        whole = Budget(1)
        async with running(answer=silent, budget=whole) as server, trio.open_nursery() as nursery:
            nursery.start_soon(server.ask, "www.bing.com.")
            await trio.sleep(1)

            assert (await server.ask("www.bing.com.", tcp=tcp)).rcode() == dns.rcode.SERVFAIL
            assert trio.current_time() == pytest.approx(1)
            assert texts(await server.ask("productpage.", tcp=tcp)) == ["productpage. A 9.9.9.9"]
            assert await server.server.resolve("www.bing.com", ipv6=False) == []
        assert whole.used == 0

    run()


@trio_test
async def test_metrics_tell_questions_from_those_passed_on_and_failed() -> None:
    answer = zone({("www.bing.com.", "A"): ["1.1.1.1"], ("bad.com.", "A"): 2})

    async with running(answer=answer) as server:
        for name, kind in (
            ("www.bing.com.", "A"),
            ("www.bing.com.", "AAAA"),
            ("bad.com.", "A"),
            ("x.com.", "MX"),
        ):
            await server.ask(name, kind)
        await server.ask("productpage.", "AAAA", tcp=True)

    mine = ("client-app", "v1")
    forwarded = {("a", "udp", *mine): 2, ("aaaa", "udp", *mine): 1, ("mx", "udp", *mine): 1}
    assert server.counts.requests == {**forwarded, ("aaaa", "tcp", *mine): 1}
    assert server.counts.upstream == forwarded
    assert server.counts.failures == dict.fromkeys(forwarded, 1)
    assert len(server.counts.durations) == 4


def test_each_query_leaves_a_line_for_those_who_want_it(caplog: pytest.LogCaptureFixture) -> None:
    @trio_test
    async def run() -> None:
        async with running(answer=zone({("bing.com.", "A"): ["1.1.1.1", "1.1.1.2"]})) as server:
            for name, kind in (
                ("bing.com.", "A"),
                ("Nothing.com.", "A"),
                ("headless-ipv6.", "A"),
                ("productpage.", "AAAA"),
                ("www.google.com.ns1.svc.cluster.local.", "A"),
            ):
                await server.ask(name, kind)
            await server.exchange(dns.update.UpdateMessage("example.org").to_wire())

    with caplog.at_level(logging.DEBUG, "dns"):
        run()

    lines = [record.__dict__["fields"] for record in caplog.records if record.name == "dns"]
    assert list(lines[0]) == ["src.workload", "src.namespace", "query", "domain", "result", "endpoints"]
    assert [tuple(line.values())[2:] for line in lines[:5]] == [
        ("A", "bing.com.", "forwarded", 2),
        ("A", "nothing.com.", "forwarding failed (response code 3)", 0),
        ("A", "headless-ipv6.", "service does not support this record type", 0),
        ("AAAA", "productpage.", "no records", 0),
        ("A", "www.google.com.ns1.svc.cluster.local.", "success", 2),
    ]
    assert {line["src.workload"] for line in lines} == {"client"}
    assert lines[5]["query"] == "unknown"


@pytest.mark.parametrize(
    ("name", "ipv6", "expected"),
    [
        ("productpage", False, ["9.9.9.9"]),
        ("productpage", True, []),
        ("dual.localhost", True, [V6]),
        ("headless", False, ["30.30.30.30", "31.31.31.31"]),
        ("www.bing.com", False, ["1.1.1.1"]),
        ("www.bing.com", True, []),
        ("nothing.com", False, []),
        ("a..b", False, []),
        ("x" * 64, False, []),
    ],
)
def test_a_name_is_resolved_for_the_workload_itself(name: str, ipv6: bool, expected: list[str]) -> None:
    @trio_test
    async def run() -> None:
        async with running() as server:
            found = await server.server.resolve(name, ipv6)
        assert sorted(str(ip) for ip in found) == expected

    run()


@trio_test(autojump=True)
async def test_nothing_is_resolved_for_a_workload_nobody_knows() -> None:
    async with running(Mesh()) as server:
        assert await server.server.resolve("productpage", ipv6=False) == []


@trio_test
async def test_a_malformed_upstream_answer_resolves_to_nothing() -> None:
    async with running(answer=lambda message: [message[:2] + b"\x81\x80" + message[4:-1]]) as server:
        with trio.move_on_after(0.1):
            await server.server.resolve("www.bing.com", ipv6=False)

    def bad(message: bytes) -> list[bytes]:
        return [message[:2] + b"\x81\x80\0\1\0\1\0\0\0\0" + message[12:30] + b"junk"]

    async with running(answer=bad) as server:
        assert await server.server.resolve("www.bing.com", ipv6=False) == []


# connections


@trio_test(autojump=True)
async def test_an_idle_connection_is_closed() -> None:
    async with running() as server, server.connected() as stream:
        await stream.send(dns.message.make_query("productpage.", "A").to_wire())
        assert await stream.receive()
        assert await stream.receive() is None

    assert trio.current_time() == pytest.approx(5)


@trio_test
async def test_one_connection_too_many_is_closed() -> None:
    one = replace(SETTINGS, connections=1)
    async with running(settings=one) as server:
        async with server.connected() as first:
            await first.send(dns.message.make_query("productpage.", "A").to_wire())
            assert await first.receive()
            async with server.connected() as second:
                with pytest.raises((trio.BrokenResourceError, AssertionError)):
                    assert await second.receive()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert texts(await server.ask("productpage.", tcp=True))


@trio_test
async def test_a_connection_that_ends_within_a_message_is_forgotten() -> None:
    async with running() as server:
        stream = await trio.open_tcp_stream(str(server.tcp.ip), server.tcp.port)
        await stream.send_all(b"\0\x40abc")
        await stream.send_eof()
        assert await stream.receive_some() == b""
        await stream.aclose()
        assert server.server._connections._open == 0


@trio_test(autojump=True)
async def test_a_client_that_does_not_read_is_left() -> None:
    service = kubernetes("large", "ns1")
    pods = [pod(f"p{n}", f"240.0.{n >> 8}.{n & 255}", backs=service) for n in range(4000)]
    mesh = mesh_of([service], *pods)

    async with running(mesh) as server:
        stream = await trio.open_tcp_stream(str(server.tcp.ip), server.tcp.port)
        message = dns.message.make_query("large.", "A").to_wire()
        await stream.send_all((len(message).to_bytes(2, "big") + message) * 500)
        await trio.sleep(6)
        assert server.server._connections._open == 0
        stream.socket.close()

    assert 0 < sum(server.counts.requests.values()) < 500


# life


@trio_test(autojump=True)
async def test_a_drain_closes_the_doors_and_lets_queries_finish() -> None:
    answers: list[Answer] = [silent]

    async with (
        running(answer=lambda message: answers[0](message)) as server,
        server.connected() as idle,
        trio.open_nursery() as nursery,
    ):
        await idle.send(dns.message.make_query("productpage.", "A").to_wire())
        assert await idle.receive()

        @nursery.start_soon
        async def wait() -> None:
            assert texts(await server.ask("www.bing.com.", tcp=True)) == ["www.bing.com. A 1.1.1.1"]

        @nursery.start_soon
        async def wait_longer() -> None:
            assert texts(await server.ask("www.bing.com.")) == ["www.bing.com. A 1.1.1.1"]

        await trio.sleep(4)
        server.drain.request("test")
        answers[0] = BING
        assert await idle.receive() is None
        assert trio.current_time() == pytest.approx(4)


@trio_test(autojump=True)
async def test_the_grace_period_ends_what_does_not_finish() -> None:
    sockets = bind(FACTORY, SocketAddress(IPv4Address("127.0.0.1"), 0), ipv6=True)
    async with upstream(silent) as server:
        forwarder = Forwarder(FACTORY, ResolvConf(servers=(server.address,)))
        dns_server = DnsServer(
            sockets=sockets,
            live=LiveMesh(reference_mesh()),
            client=CLIENT.info,
            forwarder=forwarder,
            settings=SETTINGS,
            metrics=Counts(),
            rng=random.Random(1),
        )
        drain = Drain(3)
        async with trio.open_nursery() as nursery:
            await nursery.start(dns_server.run, drain)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                message = dns.message.make_query("www.bing.com.", "A").to_wire()
                client.sendto(message, ("127.0.0.1", sockets.udp[0].getsockname()[1]))
            await trio.sleep(1)
            drain.request("test")

    assert trio.current_time() == pytest.approx(4)
    assert [sock.fileno() for sock in sockets.udp] == [-1]


@trio_test
async def test_a_server_never_run_gives_its_sockets_back() -> None:
    sockets = bind(FACTORY, SocketAddress(IPv4Address("127.0.0.1"), 0), ipv6=True)
    forwarder = Forwarder(FACTORY, ResolvConf(servers=(SocketAddress(ip_address("127.0.0.1"), 53),)))
    server = DnsServer(
        sockets=sockets,
        live=LiveMesh(reference_mesh()),
        client=CLIENT.info,
        forwarder=forwarder,
        settings=SETTINGS,
        metrics=Counts(),
        rng=random.Random(1),
    )

    server.close()

    assert [sock.fileno() for sock in sockets.udp] == [-1]


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@trio_test
async def test_localhost_is_both_loopbacks_where_there_is_ipv6() -> None:
    with bind(FACTORY, LoopbackPort(free_port()), ipv6=True) as sockets:
        expected: list[IPv4Address | IPv6Address] = [IPv4Address("127.0.0.1")]
        if FACTORY.has_ipv6_loopback():
            expected.append(IPv6Address("::1"))
        assert [listener.address.ip for listener in sockets.tcp] == expected
        assert len(sockets.udp) == len(expected)
    with bind(FACTORY, LoopbackPort(free_port()), ipv6=False) as sockets:
        assert [listener.address.ip for listener in sockets.tcp] == [IPv4Address("127.0.0.1")]


@trio_test
async def test_when_an_address_is_taken_nothing_stays_bound() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        with pytest.raises(BindFailed, match=r"failed to bind to address 127\.0\.0\.1:\d+"):
            bind(FACTORY, SocketAddress(IPv4Address("127.0.0.1"), port), ipv6=True)

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
            free.bind(("127.0.0.1", port))


@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
def test_a_server_cancelled_at_any_step_leaves_nothing(tcp: bool) -> None:
    whole = Budget(10)

    async def scenario() -> None:
        async with running(budget=whole) as server:
            await server.ask("productpage.", tcp=tcp)
            await server.ask("www.bing.com.", tcp=tcp)

    def check() -> None:
        assert whole.used == 0

    assert cancelled_everywhere_now(scenario, check=check) > 10
