import errno
import socket
from dataclasses import dataclass, field
from ipaddress import ip_address

import dns.message
import dns.update
import pytest
import trio

from tests.fakes.cancellation import cancelled_everywhere_now
from tests.fakes.trio_test import trio_test
from tests.fakes.upstream_dns import FACTORY, Answer, Upstream, silent, upstream, zone
from ztunnel_trio.dns.forward import ASIDE_SECONDS, Budget, Forwarder, Via
from ztunnel_trio.dns.resolv_conf import ResolvConf
from ztunnel_trio.errors import Unavailable
from ztunnel_trio.model.address import SocketAddress
from ztunnel_trio.wire.dns import with_id

ASKED = dns.message.make_query("www.example.com", "A", id=7, use_edns=0, payload=1232).to_wire()
ZONE = zone({("www.example.com.", "A"): ["1.1.1.1"]})


def forwarder(*servers: Upstream | SocketAddress, timeout: float = 5, attempts: int = 2) -> Forwarder:
    addresses = tuple(one.address if isinstance(one, Upstream) else one for one in servers)
    return Forwarder(FACTORY, ResolvConf(servers=addresses, timeout_seconds=timeout, attempts=attempts))


async def unused_address() -> SocketAddress:
    async with upstream(silent) as gone:
        return gone.address


@trio_test
async def test_the_query_goes_out_and_the_answer_comes_back_unchanged_but_for_the_id() -> None:
    sent: list[bytes] = []

    def answer(message: bytes) -> list[bytes]:
        [reply] = ZONE(message)
        sent.append(reply)
        return [reply]

    async with upstream(answer) as server:
        reply = await forwarder(server).exchange(ASKED, Via.UDP)

    assert server.asked[0][2:] == ASKED[2:]
    assert reply == with_id(sent[0], 7)


@trio_test
async def test_each_query_has_its_own_port_and_id() -> None:
    async with upstream(ZONE) as server:
        forward = forwarder(server)
        for _ in range(20):
            await forward.exchange(ASKED, Via.UDP)

    assert len(set(server.ports)) > 15
    assert len({message[:2] for message in server.asked}) > 15


@trio_test
async def test_any_operation_is_passed_on() -> None:
    update = dns.update.UpdateMessage("example.org")
    update.add("x", 300, "A", "1.1.1.1")

    async with upstream(lambda message: [message[:2] + b"\xa8\5" + bytes(8)]) as server:
        reply = await forwarder(server).exchange(update.to_wire(), Via.UDP)

    assert server.asked[0][2:] == update.to_wire()[2:]
    assert reply == update.to_wire()[:2] + b"\xa8\5" + bytes(8)


@trio_test
async def test_what_does_not_echo_id_and_question_is_ignored() -> None:
    other = dns.message.make_query("www.example.org", "A", id=7).to_wire()

    def answer(message: bytes) -> list[bytes]:
        [right] = ZONE(message)
        [wrong_name] = ZONE(with_id(other, int.from_bytes(message[:2], "big")))
        return [
            b"",
            b"junk",
            with_id(right, int.from_bytes(right[:2], "big") ^ 1),
            message,
            wrong_name,
            right,
        ]

    async with upstream(answer) as server:
        reply = await forwarder(server).exchange(ASKED, Via.UDP)

    assert reply == with_id(ZONE(ASKED)[0], 7)


@trio_test(autojump=True)
async def test_what_comes_from_another_address_is_not_heard() -> None:
    async with upstream(silent) as server:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.bind(("127.0.0.1", 0))

            def answer(message: bytes) -> list[bytes]:
                [reply] = ZONE(message)
                stranger.sendto(reply, ("127.0.0.1", server.ports[-1]))
                return []

            server.udp = answer
            with pytest.raises(Unavailable, match="request timed out"):
                await forwarder(server, attempts=1).exchange(ASKED, Via.UDP)


@trio_test(autojump=True)
async def test_a_silent_server_is_asked_again_until_the_tries_are_over() -> None:
    async with upstream(silent) as server:
        began = trio.current_time()
        with pytest.raises(Unavailable, match="request timed out"):
            await forwarder(server, timeout=5, attempts=2).exchange(ASKED, Via.UDP)

    assert trio.current_time() - began == pytest.approx(15)
    assert len(server.asked) == 3


@trio_test(autojump=True)
async def test_a_lost_datagram_costs_one_time_out() -> None:
    async with upstream(silent) as server:

        def answer(message: bytes) -> list[bytes]:
            return ZONE(message) if len(server.asked) == 2 else []

        server.udp = answer
        began = trio.current_time()
        await forwarder(server).exchange(ASKED, Via.UDP)

    assert trio.current_time() - began == pytest.approx(5)


@trio_test(autojump=True)
async def test_a_server_that_is_not_there_fails_at_once() -> None:
    began = trio.current_time()

    with pytest.raises(Unavailable, match=r"io error: Connection refused \(os error 111\)"):
        await forwarder(await unused_address()).exchange(ASKED, Via.UDP)
    with pytest.raises(Unavailable, match="io error: Connection refused"):
        await forwarder(await unused_address()).exchange(ASKED, Via.TCP)

    assert trio.current_time() == began


@trio_test(autojump=True)
async def test_the_next_server_is_asked_when_the_first_is_silent_for_its_share() -> None:
    async with upstream(silent) as first, upstream(ZONE) as second:
        began = trio.current_time()
        reply = await forwarder(first, second, timeout=5).exchange(ASKED, Via.UDP)

    assert reply == with_id(ZONE(ASKED)[0], 7)
    assert trio.current_time() - began == pytest.approx(2.5)
    assert len(first.asked) == 1


@trio_test(autojump=True)
async def test_the_next_server_is_asked_at_once_when_the_first_fails() -> None:
    async with upstream(zone({("www.example.com.", "A"): 2})) as first, upstream(ZONE) as second:
        began = trio.current_time()
        reply = await forwarder(first, await unused_address(), second).exchange(ASKED, Via.UDP)

    assert (reply, trio.current_time()) == (with_id(ZONE(ASKED)[0], 7), began)


@trio_test(autojump=True)
async def test_a_server_that_was_silent_is_not_asked_first_for_a_while() -> None:
    async with upstream(silent) as first, upstream(ZONE) as second:
        asking = forwarder(first, second, timeout=5)
        await asking.exchange(ASKED, Via.UDP)
        began = trio.current_time()
        for _ in range(3):
            await asking.exchange(ASKED, Via.UDP)
        assert trio.current_time() == began
        assert len(first.asked) == 1

        await trio.sleep(ASIDE_SECONDS)
        began = trio.current_time()
        await asking.exchange(ASKED, Via.UDP)  # asked first again, and the next one beside it

    assert trio.current_time() == began
    assert len(first.asked) == 2


@trio_test(autojump=True)
async def test_a_server_that_works_again_is_trusted_again() -> None:
    answers: list[Answer] = [silent]
    async with upstream(lambda message: answers[0](message)) as first, upstream(ZONE) as second:
        asking = forwarder(first, second)
        await asking.exchange(ASKED, Via.UDP)
        assert asking.order.is_doubted(first.address)
        answers[0] = ZONE
        second.udp = silent
        await trio.sleep(ASIDE_SECONDS)
        await asking.exchange(ASKED, Via.UDP)

    assert not asking.order.is_doubted(first.address)


@trio_test
async def test_an_error_code_sets_no_server_aside() -> None:
    async with upstream(zone({("www.example.com.", "A"): 2})) as first, upstream(ZONE) as second:
        asking = forwarder(first, second)
        await asking.exchange(ASKED, Via.UDP)

    assert not asking.order.is_doubted(first.address)


@trio_test(autojump=True)
async def test_a_server_that_cannot_be_reached_is_set_aside() -> None:
    async with upstream(ZONE) as second:
        gone = await unused_address()
        asking = forwarder(gone, second)
        await asking.exchange(ASKED, Via.UDP)

    assert asking.order.is_doubted(gone)
    assert asking.order.at(trio.current_time()) == [second.address, gone]
    assert asking.order.at(trio.current_time() + ASIDE_SECONDS) == [gone, second.address]


@pytest.mark.parametrize("code", [2, 5, 4])
def test_an_error_no_server_betters_is_passed_on(code: int) -> None:
    @trio_test(autojump=True)
    async def run() -> None:
        answer = zone({("www.example.com.", "A"): code})
        async with upstream(answer) as first, upstream(answer) as second:
            reply = await forwarder(first, second).exchange(ASKED, Via.UDP)

        assert reply == with_id(answer(ASKED)[0], 7)
        assert (len(first.asked), len(second.asked)) == (1, 1)

    run()


@trio_test
async def test_no_such_name_is_a_good_answer() -> None:
    async with upstream(zone({})) as first, upstream(ZONE) as second:
        reply = await forwarder(first, second).exchange(ASKED, Via.UDP)

    assert dns.message.from_wire(reply).rcode() == dns.rcode.NXDOMAIN
    assert second.asked == []


def truncated(message: bytes) -> list[bytes]:
    [reply] = ZONE(message)
    return [reply[:2] + bytes([reply[2] | 2]) + reply[3:]]


@pytest.mark.parametrize(
    ("via", "protocols", "answer"),
    [
        (Via.UDP, ["udp"], truncated),
        (Via.UDP_THEN_TCP, ["udp", "tcp"], ZONE),
        (Via.TCP, ["tcp"], ZONE),
    ],
)
def test_a_truncated_answer_is_enough_for_a_datagram_only(
    via: Via, protocols: list[str], answer: Answer
) -> None:
    @trio_test
    async def run() -> None:
        async with upstream(truncated, ZONE) as server:
            reply = await forwarder(server).exchange(ASKED, via)

        assert server.protocols == protocols
        assert reply == with_id(answer(ASKED)[0], 7)

    run()


@trio_test
async def test_a_tcp_connection_that_ends_without_an_answer_is_a_failure() -> None:
    async with upstream(silent, lambda message: [b"junk" * 4]) as server:
        forward = forwarder(server, timeout=0.2, attempts=0)
        with pytest.raises(Unavailable, match="request timed out"):
            await forward.exchange(ASKED, Via.TCP)

    async def hang_up(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.aclose()

    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, hang_up, [listener])
        address = SocketAddress(ip_address("127.0.0.1"), listener.socket.getsockname()[1])
        with pytest.raises(Unavailable, match="connection ended without an answer"):
            await forwarder(address).exchange(ASKED, Via.TCP)
        nursery.cancel_scope.cancel()


@dataclass
class NoSockets:
    made: list[str] = field(default_factory=list)

    def udp(self, family: socket.AddressFamily) -> socket.socket:
        self.made.append(family.name)
        raise OSError(errno.EMFILE, "Too many open files")

    async def connect(self, destination: SocketAddress) -> socket.socket:
        raise AssertionError


@trio_test
async def test_without_descriptors_the_query_fails_and_nothing_else() -> None:
    conf = ResolvConf(servers=(SocketAddress(ip_address("::1"), 53),), attempts=1)
    sockets = NoSockets()

    with pytest.raises(Unavailable, match="Too many open files"):
        await Forwarder(sockets, conf).exchange(ASKED, Via.UDP)

    assert sockets.made == ["AF_INET6", "AF_INET6"]


def test_a_budget_counts_in_the_whole_as_well() -> None:
    whole = Budget(3)
    one, other = Budget(2, whole), Budget(2, whole)

    assert [one.take(), one.take(), one.take()] == [True, True, False]
    assert [other.take(), other.take()] == [True, False]
    one.give_back()
    assert (whole.used, other.take(), whole.used) == (2, True, 3)


@pytest.mark.parametrize("via", [Via.UDP, Via.TCP, Via.UDP_THEN_TCP])
def test_a_query_cancelled_at_any_step_leaves_nothing(via: Via) -> None:
    async def scenario() -> None:
        async with upstream(truncated, ZONE) as first, upstream(truncated, ZONE) as second:
            await forwarder(first, second).exchange(ASKED, via)

    assert cancelled_everywhere_now(scenario) > 3
