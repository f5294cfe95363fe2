"""Captured connections leaving a pod: carried, refused, tried elsewhere, cut."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from ipaddress import ip_address

import pytest
import trio

from tests.fakes.cancellation import cancelled_everywhere_now
from tests.fakes.gateway import (
    GATEWAY,
    REMOTE,
    ending_inner,
    far_away,
    open_gateway,
    to_proxy_of,
)
from tests.fakes.trio_test import trio_test
from tests.fakes.tunnels import App, tcp_pair, until
from tests.fakes.world import PLAIN, SERVER, SOURCE, World, at, deny_all, patient_clock, world
from ztunnel_trio.lab.hbone import Serve
from ztunnel_trio.model.address import NetworkAddress, SocketAddress
from ztunnel_trio.model.ending import Revoked
from ztunnel_trio.model.service import Service
from ztunnel_trio.model.workload import Workload
from ztunnel_trio.net.engine import Engine
from ztunnel_trio.observe.metrics import Reporter
from ztunnel_trio.proxy.node import ProxySettings
from ztunnel_trio.proxy.tunnel.server import TunnelRequest

WEB = Service(
    name="web", namespace="ns", hostname="web.ns.svc.cluster.local",
    vips=(NetworkAddress("", ip_address("127.10.0.1")),), ports={80: 80},
)  # fmt: skip


def endpoint(number: int, port: int, like: Workload = PLAIN) -> Workload:
    """An endpoint of WEB at 127.0.1.number."""
    return replace(
        like,
        uid=f"//Pod/ns/web-{number}",
        name=f"web-{number}",
        addresses=(ip_address("127.0.1.0") + number,),
        services={WEB.key: {80: port}},
    )


async def ask(app: App, text: bytes = b"hello world") -> bytes:
    await app.send(text)
    return await app.receive_exactly(len(text))


async def ended(it: World, count: int) -> None:
    await until(lambda: len(it.lines.complete) >= count)


@trio_test
async def test_to_a_workload_of_the_mesh_over_hbone() -> None:
    async with world() as it:
        await it.listen(SERVER)
        there = await it.echo(SERVER.addresses[0])
        app = it.call(it.outbound(SOURCE), there)
        assert await ask(app) == b"hello world"
        assert it.metric("istio_tcp_connections_opened_total") == 2
        assert it.metric("istio_tcp_connections_closed_total") == 0
        app.end()
        assert await app.receive() == b""
        await ended(it, 2)

        (sent,) = [line for line in it.lines.complete if line["direction"] == "outbound"]
        assert (sent["dst.addr"], sent["dst.hbone_addr"]) == ("127.0.0.3:15008", str(there))
        assert (sent["bytes_sent"], sent["bytes_recv"]) == ("11", "11")
        assert sent["src.identity"] == "spiffe://cluster.local/ns/ns/sa/source"
        assert it.lines.errors() == [None, None]


@trio_test
async def test_to_a_plain_workload_and_to_what_the_mesh_does_not_know() -> None:
    async with world() as it:
        for address in ("127.0.0.4", "127.0.0.77"):
            there = await it.echo(ip_address(address))
            app = it.call(it.outbound(SOURCE), there)
            assert await ask(app) == b"hello world"
            app.end()
            assert await app.receive() == b""
        await ended(it, 2)
        assert [line["dst.addr"].partition(":")[0] for line in it.lines.complete] == [
            "127.0.0.4",
            "127.0.0.77",
        ]
        assert all("dst.hbone_addr" not in line for line in it.lines.complete)


@trio_test
async def test_a_connection_refused_before_there_was_a_route_leaves_one_early_line() -> None:
    async with world() as it:
        app = it.call(it.outbound(SOURCE), at("127.0.0.1:15001"))
        assert await app.receive() == b""
        await ended(it, 1)
        assert it.lines.complete[0]["message"] == "connection failed"
        assert it.lines.errors() == ["attempted recursive call to ourselves"]
        assert it.metric("istio_tcp_connections_opened_total") == 0


@trio_test(clock=patient_clock())
async def test_an_unknown_workload_is_waited_for() -> None:
    async with world() as it:
        began = trio.current_time()
        app = it.call(it.outbound(replace(SOURCE, name="nobody")), at("10.0.0.1:80"))
        assert await app.receive() == b""
        assert trio.current_time() - began == pytest.approx(5, abs=0.1)
        assert it.lines.errors() == ["failed to fetch information about local workload: source.ns (nobody)"]


@trio_test
async def test_nothing_listens_there() -> None:
    async with world() as it:
        it.call(it.outbound(SOURCE), at("127.0.0.4:1"))
        it.call(it.outbound(SOURCE), SocketAddress(SERVER.addresses[0], 80))
        await ended(it, 2)
        assert it.lines.errors() == ["io error: Connection refused (os error 111)"] * 2
        assert it.metric("istio_tcp_connections_failed_total") == 2
        assert it.metric("istio_connect_retries_total") == 0  # there is nobody else


@trio_test
async def test_without_a_certificate() -> None:
    async with world() as it:
        it.certificates.missing.add(SOURCE.identity)
        it.call(it.outbound(SOURCE), SocketAddress(SERVER.addresses[0], 80))
        await ended(it, 1)
        (line,) = it.lines.complete
        assert line["error"].startswith("identity error: no certificate for")
        assert 'response_flags="IDENTITY_ERROR"' in it.node.metrics.render().decode()


@trio_test
async def test_a_peer_that_is_not_whom_the_mesh_says() -> None:
    async with world() as it:
        it.put(replace(endpoint(1, 80, SERVER), service_account="other"))
        await it.listen(replace(SERVER, addresses=(ip_address("127.0.1.1"),)))
        it.call(it.outbound(SOURCE), at("127.0.1.1:80"))
        await until(lambda: len(it.lines.errors("outbound")) == 1)
        (error,) = it.lines.errors("outbound")
        assert error is not None
        assert error.startswith("io error: ")
        assert "did not present the expected SAN (spiffe://cluster.local/ns/ns/sa/other)" in error


@trio_test
async def test_the_peers_refusal_is_the_status_it_answered() -> None:
    async with world() as it:
        it.put(deny_all())
        await it.listen(SERVER)
        app = it.call(it.outbound(SOURCE), SocketAddress(SERVER.addresses[0], 80))
        assert await app.receive() == b""
        await ended(it, 2)
        assert it.lines.errors("outbound") == ["http status: 401 Unauthorized"]
        assert it.lines.errors("inbound") == [
            "connection closed due to policy rejection: explicitly denied by: ns/deny-all"
        ]


@pytest.mark.parametrize("like", [PLAIN, SERVER])
def test_a_connect_that_fails_tries_the_other_endpoints(like: Workload) -> None:
    @trio_test
    async def main() -> None:
        async with world() as it:
            there = await it.echo(ip_address("127.0.1.1"))
            endpoints = [endpoint(n, there.port, like) for n in (1, 2, 3)]
            it.put(WEB, *endpoints)
            await it.listen(endpoints[0])
            for _ in range(8):
                app = it.call(it.outbound(SOURCE), at("127.10.0.1:80"))
                assert await ask(app) == b"hello world"
                app.end()
                assert await app.receive() == b""
            await until(lambda: len(it.lines.errors("outbound")) == 8)

            assert it.lines.errors("outbound") == [None] * 8
            assert 1 <= it.metric("istio_connect_retries_total") <= 16
            assert all(line["dst.workload"] == "web-1" for line in it.lines.complete)

    main()


@trio_test
async def test_two_other_endpoints_are_tried_and_no_more() -> None:
    async with world() as it:
        it.put(WEB, *[endpoint(n, 9) for n in range(1, 7)])
        outbound = it.outbound(SOURCE)
        it.call(outbound, at("127.10.0.1:80"))
        await ended(it, 1)

        assert it.lines.errors() == ["io error: Connection refused (os error 111)"]
        assert it.metric("istio_connect_retries_total") == 2
        dialled = outbound.reach.sockets.dialled  # type: ignore[attr-defined]
        assert len(set(dialled)) == len(dialled) == 3


@trio_test
async def test_an_endpoint_that_just_failed_is_not_the_first_choice_of_the_next() -> None:
    async with world() as it:
        there = await it.echo(ip_address("127.0.1.1"))
        it.put(WEB, *[endpoint(n, there.port) for n in (1, 2)])
        outbound = it.outbound(SOURCE)
        for _ in range(16):
            app = it.call(outbound, at("127.10.0.1:80"))
            assert await ask(app) == b"hello world"

        assert it.metric("istio_connect_retries_total") <= 1


@trio_test
async def test_where_all_failed_lately_they_are_tried_all_the_same() -> None:
    async with world() as it:
        it.put(WEB, endpoint(1, 9))
        outbound = it.outbound(SOURCE)
        for count in (1, 2):
            it.call(outbound, at("127.10.0.1:80"))
            await ended(it, count)
        assert it.lines.errors() == ["io error: Connection refused (os error 111)"] * 2


@trio_test
async def test_another_address_of_an_endpoint_is_tried_where_one_refuses() -> None:
    async with world() as it:
        there = await it.echo(ip_address("127.0.0.44"))
        named = replace(endpoint(1, there.port), addresses=(), hostname="db.example.com")
        it.put(WEB, named)
        it.hosts["db.example.com"] = (ip_address("127.0.0.45"), ip_address("127.0.0.44"))
        for _ in range(8):
            app = it.call(it.outbound(SOURCE), at("127.10.0.1:80"))
            assert await ask(app) == b"hello world"
            app.end()
            assert await app.receive() == b""
        await ended(it, 8)

        assert it.lines.errors() == [None] * 8
        assert 1 <= it.metric("istio_connect_retries_total") < 8
        assert {line["dst.addr"] for line in it.lines.complete} == {str(there)}


@trio_test
async def test_a_refusal_by_policy_is_tried_nowhere_else() -> None:
    async with world() as it:
        endpoints = [endpoint(n, 9, SERVER) for n in (1, 2)]
        it.put(WEB, deny_all(), *endpoints)
        for each in endpoints:
            await it.listen(each)
        it.call(it.outbound(SOURCE), at("127.10.0.1:80"))
        await ended(it, 2)
        assert it.lines.errors("outbound") == ["http status: 401 Unauthorized"]
        assert it.metric("istio_connect_retries_total") == 0


@trio_test
async def test_a_proxy_that_cannot_reach_its_application_is_no_end() -> None:
    async with world() as it:
        there = await it.echo(ip_address("127.0.1.1"))
        endpoints = [endpoint(n, there.port, SERVER) for n in (1, 2)]
        it.put(WEB, *endpoints)
        for each in endpoints:
            await it.listen(each)
        for _ in range(8):
            app = it.call(it.outbound(SOURCE), at("127.10.0.1:80"))
            assert await ask(app) == b"hello world"
            app.close()
        await until(lambda: len(it.lines.errors("outbound")) == 8)
        assert it.metric("istio_connect_retries_total") >= 1


@pytest.mark.parametrize("like", [PLAIN, SERVER])
def test_an_endpoint_that_does_not_answer_leaves_time_for_another(like: Workload) -> None:
    @trio_test(clock=patient_clock())
    async def main() -> None:
        async with world() as it:
            there = await it.echo(ip_address("127.0.1.1"))
            endpoints = [endpoint(n, there.port, like) for n in (1, 2, 3)]
            it.put(WEB, *endpoints)
            await it.listen(endpoints[0])
            it.silent |= {ip_address("127.0.1.2"), ip_address("127.0.1.3")}
            for _ in range(8):
                began = trio.current_time()
                app = it.call(it.outbound(SOURCE), at("127.10.0.1:80"))
                assert await ask(app) == b"hello world"
                assert trio.current_time() - began < 7
                app.close()
            assert it.metric("istio_connect_retries_total") >= 1

    main()


@pytest.mark.parametrize("count", [1, 3])
def test_where_nobody_answers_it_takes_the_connect_deadline(count: int) -> None:
    @trio_test(clock=patient_clock())
    async def main() -> None:
        async with world() as it:
            endpoints = [endpoint(n, 80, SERVER) for n in range(1, count + 1)]
            it.put(WEB, *endpoints)
            it.silent |= {each.addresses[0] for each in endpoints}
            it.call(it.outbound(SOURCE), at("127.10.0.1:80"))
            await trio.sleep(9.9)
            assert it.lines.complete == []
            await trio.sleep(0.2)
            assert it.lines.errors() == [
                "connection timed out, maybe a NetworkPolicy is blocking HBONE port 15008: "
                "deadline has elapsed"
            ]
            assert int(it.lines.complete[0]["duration"].removesuffix("ms")) >= 9900

    main()


@trio_test(clock=patient_clock())
async def test_an_endpoint_hurried_for_others_that_are_none_gets_the_rest_of_the_time() -> None:
    async with world() as it:
        slow = endpoint(1, 80, SERVER)
        useless = replace(endpoint(2, 80, SERVER), addresses=())
        it.put(WEB, slow, useless)
        it.silent |= {slow.addresses[0]}
        outbound = it.outbound(SOURCE)
        it.call(outbound, at("127.10.0.1:80"))
        await trio.sleep(9.9)
        assert it.lines.complete == []
        await trio.sleep(0.2)
        assert len(it.lines.complete) == 1
        assert len(outbound.reach.sockets.dialled) == 3  # type: ignore[attr-defined]


@trio_test
async def test_a_revoked_peer_ends_the_connection_with_that_reason() -> None:
    async with world() as it:
        await it.listen(SERVER)
        there = await it.echo(SERVER.addresses[0])
        outbound = it.outbound(SOURCE)
        app = it.call(outbound, there)
        assert await ask(app) == b"hello world"
        (pooled,) = outbound.reach.pool.choices.pooled.values()
        pooled.tunnel.end(Revoked())
        await until(lambda: len(it.lines.errors("outbound")) == 1)
        assert it.lines.errors("outbound") == ["connection closed: peer certificate revoked by CRL"]


@trio_test
async def test_the_workloads_hostname_is_resolved_on_demand() -> None:
    async with world() as it:
        there = await it.echo(ip_address("127.0.0.44"))
        named = replace(endpoint(1, there.port), addresses=(), hostname="db.example.com")
        it.put(WEB, named)
        outbound = it.outbound(SOURCE)
        it.call(outbound, at("127.10.0.1:80"))
        await ended(it, 1)
        assert it.lines.errors() == [f"no ip addresses were resolved for workload: {named.uid}"]
        it.hosts["db.example.com"] = ()
        it.call(outbound, at("127.10.0.1:80"))
        await ended(it, 2)
        assert it.lines.errors()[1] == (
            f"ip addresses were resolved for workload {named.uid}, "
            "but valid dns response had no A/AAAA records"
        )
        it.hosts["db.example.com"] = (ip_address("127.0.0.44"),)
        assert await ask(it.call(outbound, at("127.10.0.1:80"))) == b"hello world"
        assert it.metric("istio_on_demand_dns_total") == 3


@trio_test
async def test_the_control_plane_is_asked_where_the_mesh_comes_on_demand() -> None:
    async with world(ProxySettings(on_demand=True)) as it:
        there = await it.echo(ip_address("127.0.0.88"))
        assert await ask(it.call(it.outbound(SOURCE), there)) == b"hello world"
        assert it.asked == ["/127.0.0.88"]


async def carry_once(it: World, target: SocketAddress) -> None:
    """One connection, from its opening to its end."""
    near, far = tcp_pair()
    app = App(near)
    try:
        async with trio.open_nursery() as nursery:
            outbound = it.outbound(SOURCE, nursery)
            nursery.start_soon(it.carry, outbound, far, target, at("127.0.0.2:4000"))
            assert await ask(app) == b"hello world"
            app.end()
            assert await app.receive() == b""
            nursery.cancel_scope.cancel()
    finally:
        near.close()
        far.close()


@pytest.mark.parametrize("target", ["127.0.0.3", "127.0.0.4"])
def test_a_connection_cancelled_anywhere_leaves_one_line_and_nothing_else(target: str) -> None:
    worlds: list[World] = []

    async def scenario() -> None:
        async with world() as it:
            await it.listen(SERVER)
            there = await it.echo(ip_address(target))
            worlds.append(it)
            await carry_once(it, there)

    assert cancelled_everywhere_now(scenario, check=lambda: check_lines(worlds), autojump=False) > 20


def check_lines(worlds: list[World]) -> None:
    """What a cancelled world told: a line for each end at most, and one for a connection that was opened."""
    if not worlds:
        return
    it = worlds.pop()
    for direction in ("outbound", "inbound"):
        assert len(it.lines.errors(direction)) <= 1
    if it.metric("istio_tcp_connections_opened_total"):
        assert len(it.lines.errors("outbound")) == 1


# ------------------------------------------------------------------------- a tunnel in a tunnel

REMOTE_ADDRESS = SocketAddress(REMOTE.vips[0].ip, 80)
REMOTE_NAME = f"{REMOTE.hostname}:80"


async def two_networks(it: World) -> SocketAddress:
    """REMOTE behind GATEWAY, ended by the proxy of SERVER; the application there."""
    await it.listen(SERVER)
    there = await it.echo(SERVER.addresses[0])
    it.put(GATEWAY, far_away(), replace(REMOTE, ports={80: there.port}))
    return there


@trio_test
async def test_another_networks_service_is_asked_for_by_name_inside_the_gateways_tunnel() -> None:
    async with world() as it:
        await two_networks(it)
        gateway = await open_gateway(it, to_proxy_of(it))
        outbound = it.outbound(SOURCE)
        for _ in range(2):
            app = it.call(outbound, REMOTE_ADDRESS)
            assert await ask(app) == b"hello world"
            app.end()
            assert await app.receive() == b""
        await ended(it, 4)

        assert it.lines.errors() == [None] * 4
        sent, *_ = [line for line in it.lines.complete if line["direction"] == "outbound"]
        came, *_ = [line for line in it.lines.complete if line["direction"] == "inbound"]
        assert (sent["dst.addr"], sent["dst.hbone_addr"]) == ("127.0.0.6:15008", REMOTE_NAME)
        assert sent["dst.workload"] == "server"  # as the inner peer's baggage says
        assert (sent["dst.identity"], came["src.identity"]) == (str(SERVER.identity), str(SOURCE.identity))
        assert (sent["bytes_sent"], sent["bytes_recv"]) == ("11", "11")
        assert [(one.authority, one.identity) for one in gateway.connects] == [
            (REMOTE_NAME, SOURCE.identity)
        ] * 2
        assert len({one.client for one in gateway.connects}) == 1  # an inner tunnel each, one outer tunnel
        (outer,) = outbound.reach.pool.choices.pooled.values()
        await until(lambda: not outer.tunnel.active_streams)
        assert outer.tunnel.is_usable


@trio_test
async def test_the_inner_connect_says_from_which_network_it_comes() -> None:
    asked: list[TunnelRequest] = []

    async def refuse(request: TunnelRequest) -> None:
        asked.append(request)
        request.refuse(401)

    async with world(ProxySettings(network="near")) as it:
        vip = replace(REMOTE.vips[0], network="near")
        it.put(
            replace(SOURCE, network="near"), GATEWAY, far_away(), replace(REMOTE, ports={80: 1}, vips=(vip,))
        )
        gateway = await open_gateway(it, ending_inner(refuse, SERVER.identity))
        app = it.call(it.outbound(SOURCE), REMOTE_ADDRESS)
        assert await app.receive() == b""
        await ended(it, 1)

        assert it.lines.errors() == ["http status: 401 Unauthorized"]
        (inner,), (outer,) = asked, gateway.connects
        assert (inner.method, inner.authority) == ("CONNECT", REMOTE_NAME)
        assert inner.headers["x-forwarded-network"] == ["near"]
        assert "x-forwarded-network" not in outer.headers
        for name in ("baggage", "forwarded", "traceparent"):
            assert inner.headers[name] == outer.headers[name]


async def silence(engine: Engine, request: TunnelRequest) -> None:
    """Take a CONNECT and say nothing in it."""
    request.accept([])
    await trio.sleep_forever()


async def no_answer(request: TunnelRequest) -> None:
    await trio.sleep_forever()


async def hang_up(engine: Engine, request: TunnelRequest) -> None:
    """Take a CONNECT and reset it."""
    request.accept([]).reset(2)
    await trio.lowlevel.checkpoint()


async def refuse_outer(engine: Engine, request: TunnelRequest) -> None:
    request.refuse(404)
    await trio.lowlevel.checkpoint()


STRANGER = replace(SERVER, service_account="stranger").identity


@pytest.mark.parametrize(
    ("gateway", "error"),
    [
        (refuse_outer, "http status: 404 Not Found"),
        (hang_up, "io error: Connection reset by peer (os error 104)"),
        (silence, "io error: deadline has elapsed"),
        (ending_inner(no_answer, SERVER.identity), "h2 failed: no answer to the CONNECT in time"),
        (
            ending_inner(no_answer, STRANGER),
            f"did not present the expected SAN ({SERVER.identity}), got {STRANGER}",
        ),
    ],
    ids=["outer refused", "reset", "no handshake", "no answer", "not who the service names"],
)
def test_what_goes_wrong_inside_costs_the_connection_and_not_the_gateways_tunnel(
    gateway: Serve, error: str
) -> None:
    @trio_test(clock=patient_clock())
    async def main() -> None:
        async with world() as it:
            it.put(GATEWAY, far_away(), REMOTE)
            await open_gateway(it, gateway)
            outbound = it.outbound(SOURCE)
            app = it.call(outbound, REMOTE_ADDRESS)
            assert await app.receive() == b""
            (found,) = it.lines.errors()

            assert found is not None
            assert error in found
            (outer,) = outbound.reach.pool.choices.pooled.values()
            await until(lambda: not outer.tunnel.active_streams)
            assert outer.tunnel.is_usable

    main()


@trio_test
async def test_a_gateway_that_is_somebody_else_hears_no_connect() -> None:
    async with world() as it:
        it.put(GATEWAY, far_away(), REMOTE)
        gateway = await open_gateway(it, silence, identity=STRANGER)
        app = it.call(it.outbound(SOURCE), REMOTE_ADDRESS)
        assert await app.receive() == b""
        await ended(it, 1)

        (error,) = it.lines.errors()
        assert error is not None
        assert f"did not present the expected SAN ({GATEWAY.identity}), got {STRANGER}" in error
        assert gateway.connects == []


@trio_test
async def test_without_a_certificate_no_gateway_is_dialled() -> None:
    async with world() as it:
        it.put(GATEWAY, far_away(), REMOTE)
        it.certificates.missing.add(SOURCE.identity)
        outbound = it.outbound(SOURCE)
        app = it.call(outbound, REMOTE_ADDRESS)
        assert await app.receive() == b""
        await ended(it, 1)

        (error,) = it.lines.errors()
        assert error is not None
        assert error.startswith("identity error: no certificate for")
        assert outbound.reach.sockets.dialled == []  # type: ignore[attr-defined]


@dataclass(eq=False)
class Watched:
    """Revocation lists on which nobody is; remembers who is watched at the dialling side."""

    at_sources: list[Callable[[], None]] = field(default_factory=list)

    def verdict(self, chain_der: Sequence[bytes], *, reporter: Reporter) -> None:
        return None

    def register(
        self, chain_der: Sequence[bytes], on_revoked: Callable[[], None], *, reporter: Reporter
    ) -> "Watched":
        if reporter == "source":
            self.at_sources.append(on_revoked)
        return self

    def release(self) -> None: ...


@trio_test
async def test_a_revoked_inner_peer_ends_its_connection_alone() -> None:
    async with world() as it:
        revocations = Watched()
        it.node = replace(it.node, revocations=revocations)
        await two_networks(it)
        await open_gateway(it, to_proxy_of(it))
        outbound = it.outbound(SOURCE)
        first, second = it.call(outbound, REMOTE_ADDRESS), it.call(outbound, REMOTE_ADDRESS)
        assert await ask(first) == await ask(second) == b"hello world"
        _outer, inner, _other = revocations.at_sources
        inner()
        await until(lambda: len(it.lines.errors("outbound")) == 1)

        assert it.lines.errors("outbound") == ["connection closed: peer certificate revoked by CRL"]
        alive = 0
        for app in (first, second):
            with suppress(AssertionError, OSError):
                alive += await ask(app) == b"hello world"
        assert alive == 1


@trio_test
async def test_a_gateway_that_is_not_there_is_no_end() -> None:
    async with world() as it:
        await two_networks(it)
        nobody = replace(GATEWAY, uid="//Pod/ns/nobody", name="nobody", addresses=(ip_address("127.0.0.7"),))
        it.put(nobody, far_away(2, nobody), far_away(3, nobody))
        await open_gateway(it, to_proxy_of(it))
        for _ in range(8):
            app = it.call(it.outbound(SOURCE), REMOTE_ADDRESS)
            assert await ask(app) == b"hello world"
            app.close()
        await until(lambda: len(it.lines.errors("outbound")) == 8)

        assert it.metric("istio_connect_retries_total") >= 1


def test_a_tunnel_in_a_tunnel_cancelled_anywhere_leaves_one_line_and_nothing_else() -> None:
    worlds: list[World] = []

    async def scenario() -> None:
        async with world() as it:
            await two_networks(it)
            await open_gateway(it, to_proxy_of(it))
            worlds.append(it)
            await carry_once(it, REMOTE_ADDRESS)

    assert cancelled_everywhere_now(scenario, check=lambda: check_lines(worlds), autojump=False) > 40
