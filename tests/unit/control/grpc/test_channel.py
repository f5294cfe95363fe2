"""A connection to a server: how it comes about, is refused, is lost and leaves nothing behind."""

import os
import socket
import ssl
import threading
from pathlib import Path

import pytest
import trio

from tests.fakes.cancellation import count_tasks
from tests.fakes.echo_server import ECHO, TRUST, echo, serving, to
from tests.fakes.trio_test import trio_test
from ztunnel_trio.control import grpc
from ztunnel_trio.control.grpc import (
    BadStatus,
    ChannelSettings,
    ConnectionEnded,
    NotConnected,
    PemRoots,
    Served,
    ServerCall,
)
from ztunnel_trio.facts.grpc import GrpcCode


@trio_test
async def test_a_unary_call_needs_its_answer(server_files: Path) -> None:
    async def silent(call: ServerCall) -> None:
        await call.answer()

    async with serving(server_files, silent) as served, grpc.open_channel(to(served.port), TRUST) as channel:
        with pytest.raises(BadStatus, match="Missing response message"):
            await channel.call(ECHO, b"", {})


@trio_test
async def test_nobody_listening_is_a_refused_connection() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        async with grpc.open_control_loop():
            with pytest.raises(NotConnected) as caught:
                async with grpc.open_channel(to(free.getsockname()[1]), TRUST):
                    raise AssertionError("connected")

    assert caught.value.source == "tcp connect error: Connection refused (os error 111)"
    assert (caught.value.code, caught.value.answered) == (GrpcCode.UNKNOWN, False)


@trio_test
async def test_an_unknown_name_is_a_dns_error() -> None:
    async with grpc.open_control_loop():
        with pytest.raises(NotConnected, match="dns error: "):
            async with grpc.open_channel(to(1, "no-such-name.invalid"), TRUST):
                raise AssertionError("connected")


class Resolver(trio.abc.HostnameResolver):
    """Answers with these addresses; with none it keeps silent."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses

    async def getaddrinfo(  # type: ignore[override]  # Trio's types allow every family
        self, host: object, port: object, *hints: object
    ) -> list[tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[str, object]]]:
        if not self.addresses:
            await trio.sleep_forever()
        inet, stream = socket.AF_INET, socket.SOCK_STREAM
        return [(inet, stream, socket.IPPROTO_TCP, "", (address, port)) for address in self.addresses]

    async def getnameinfo(self, sockaddr: object, flags: int) -> tuple[str, str]:
        raise AssertionError("nobody asks")


@trio_test
async def test_a_resolver_that_keeps_silent_is_a_dns_error() -> None:
    trio.socket.set_custom_hostname_resolver(Resolver())
    settings = ChannelSettings(connect_seconds=0.1)
    async with grpc.open_control_loop():
        with pytest.raises(NotConnected) as caught:
            async with grpc.open_channel(to(1, "istiod.silent"), TRUST, settings):
                raise AssertionError("connected")

    assert caught.value.source == "dns error: deadline has elapsed"


@trio_test
async def test_another_address_is_tried_when_the_first_refuses_or_keeps_silent(server_files: Path) -> None:
    async with serving(server_files) as served:
        port = served.port
        with socket.socket() as full:
            full.bind(("127.0.0.3", port))
            full.listen(0)
            waiting = [socket.socket() for _ in range(4)]
            for one in waiting:
                one.setblocking(False)
                one.connect_ex(full.getsockname())
            for first in ("127.0.0.2", "127.0.0.3"):
                trio.socket.set_custom_hostname_resolver(Resolver(first, "127.0.0.1"))
                async with grpc.open_channel(to(port, "localhost"), TRUST) as channel:
                    assert await channel.call(ECHO, b"x", {}) == b"x"
            for one in waiting:
                one.close()
        trio.socket.set_custom_hostname_resolver(Resolver("127.0.0.2", "127.0.0.3"))
        with pytest.raises(NotConnected, match="tcp connect error: Connection refused"):
            async with grpc.open_channel(to(port, "localhost"), TRUST):
                raise AssertionError("connected")


@trio_test
async def test_a_handshake_that_stalls_is_given_up() -> None:
    settings = ChannelSettings(handshake_seconds=0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with grpc.open_control_loop():
            with pytest.raises(NotConnected, match="TLS handshake timed out"):
                async with grpc.open_channel(to(silent.getsockname()[1], "127.0.0.1"), TRUST, settings):
                    raise AssertionError("connected")


@trio_test
async def test_a_connect_that_stalls_is_given_up() -> None:
    settings = ChannelSettings(connect_seconds=0.2)
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        async with grpc.open_control_loop():
            with pytest.raises(NotConnected, match="deadline has elapsed"):
                async with grpc.open_channel(to(full.getsockname()[1], "127.0.0.1"), TRUST, settings):
                    raise AssertionError("connected")
        for one in waiting:
            one.close()


@pytest.mark.parametrize(
    ("host", "alternative", "welcome"),
    [
        ("127.0.0.1", None, True),
        ("127.0.0.2", None, False),
        ("127.0.0.2", "localhost", True),
        ("localhost", "no.such.name", True),
        ("127.0.0.2", "no.such.name", False),
    ],
)
@trio_test
async def test_the_name_counts_first_then_the_alternative(
    tmp_path: Path, server_files: Path, host: str, alternative: str | None, welcome: bool
) -> None:
    context = grpc.server_context(str(server_files / "chain.pem"), str(server_files / "key.pem"))
    async with grpc.open_control_loop(), trio.open_nursery() as nursery:

        async def start(*, task_status: "trio.TaskStatus[Served]") -> None:
            await grpc.serve({ECHO: echo}, host="0.0.0.0", ssl_context=context, task_status=task_status)

        served: Served = await nursery.start(start)
        if welcome:
            async with grpc.open_channel(to(served.port, host, alternative), TRUST) as channel:
                assert await channel.call(ECHO, b"x", {}) == b"x"
        else:
            with pytest.raises(NotConnected, match="invalid peer certificate: "):
                async with grpc.open_channel(to(served.port, host, alternative), TRUST):
                    raise AssertionError("connected")
        nursery.cancel_scope.cancel()


@trio_test
async def test_an_alternative_name_does_not_replace_the_chain(server_files: Path) -> None:
    async with serving(server_files) as served:
        with pytest.raises(NotConnected, match="invalid peer certificate: "):
            async with grpc.open_channel(to(served.port, "localhost", "localhost"), PemRoots(())):
                raise AssertionError("connected")


@trio_test
async def test_a_peer_that_offers_no_http2_is_refused(server_files: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server_files / "chain.pem", server_files / "key.pem")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            peer, _ = listener.accept()
            try:
                with context.wrap_socket(peer, server_side=True) as tls:
                    tls.recv(1000)
            except OSError:
                peer.close()

        thread = threading.Thread(target=accept)
        thread.start()
        async with grpc.open_control_loop():
            with pytest.raises(NotConnected, match="HTTP/2"):
                async with grpc.open_channel(to(listener.getsockname()[1], "127.0.0.1"), TRUST):
                    raise AssertionError("connected")
        thread.join()


@trio_test
async def test_a_plaintext_peer_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=accept)
        thread.start()
        async with grpc.open_control_loop():
            with pytest.raises(NotConnected):
                async with grpc.open_channel(to(listener.getsockname()[1], "127.0.0.1"), TRUST):
                    raise AssertionError("connected")
        thread.join()


@trio_test
async def test_a_peer_that_stopped_is_noticed_by_ping(server_files: Path) -> None:
    """The peer's kernel answers for it, as with a stopped process: only the PING can tell."""
    settings = ChannelSettings(ping_seconds=0.2, ping_timeout_seconds=0.2, shutdown_seconds=0.1)
    with socket.create_server(("127.0.0.1", 0)) as front:
        stop, done = threading.Event(), threading.Event()

        async with serving(server_files) as served:

            def forward() -> None:
                client, _ = front.accept()
                server = socket.create_connection(("127.0.0.1", served.port))
                client.setblocking(False)
                server.setblocking(False)
                with client, server:
                    while not stop.is_set():
                        for source, sink in ((client, server), (server, client)):
                            try:
                                sink.sendall(source.recv(65536))
                            except BlockingIOError:
                                stop.wait(0.002)
                    done.wait()

            thread = threading.Thread(target=forward)
            thread.start()
            try:
                target = to(front.getsockname()[1])
                async with grpc.open_channel(target, TRUST, settings) as channel:
                    stream = await channel.open_stream(ECHO, {})
                    await stream.send(b"x")
                    await stream.receive()
                    await trio.sleep(0.7)  # several pings are answered
                    await stream.send(b"y")
                    assert await stream.receive() == b"y"
                    stop.set()
                    with trio.fail_after(3), pytest.raises(ConnectionEnded):
                        await stream.receive()
            finally:
                stop.set()
                done.set()
                thread.join()


@trio_test
async def test_reconnecting_many_times_leaves_nothing_behind(server_files: Path) -> None:
    async with serving(server_files) as served:

        async def once(step: int) -> None:
            async with grpc.open_channel(to(served.port), TRUST) as channel:
                stream = await channel.open_stream(ECHO, {})
                if step % 3 == 0:
                    await channel.call(ECHO, b"x", {})
                elif step % 3 == 1:
                    with trio.move_on_after(0.001):
                        await stream.receive()
                else:
                    served.drop_connections()

        await once(0)
        await settled(served)
        before = held()
        for step in range(12):
            await once(step)
        await settled(served)

        assert held() == before


def held() -> tuple[int, int]:
    """How many tasks there are, and descriptors."""
    return count_tasks(), len(os.listdir("/proc/self/fd"))


async def settled(served: Served) -> None:
    """Wait until the server has noticed that its clients are gone, and nothing changes any more."""
    with trio.fail_after(5):
        while served.connections:  # noqa: ASYNC110  a foreign loop sets no event
            await trio.sleep(0.01)
        quiet, last = 0, held()
        while quiet < 10:
            await trio.sleep(0.01)
            quiet, last = (quiet + 1, last) if held() == last else (0, held())
