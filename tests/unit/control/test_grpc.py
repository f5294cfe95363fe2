"""gRPC between the two loops: what surfaces in Trio for everything a server can do to us."""

import os
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.fakes.cancellation import count_tasks
from tests.fakes.pki import Authority
from tests.fakes.trio_test import trio_test
from ztunnel_trio.control import grpc
from ztunnel_trio.control.grpc import (
    BadMessage,
    BadStatus,
    ChannelSettings,
    ConnectionEnded,
    NotConnected,
    PemRoots,
    Served,
    ServerCall,
    Target,
    name_matches,
)
from ztunnel_trio.errors import WeBrokeProtocol
from ztunnel_trio.spec.grpc import GrpcCode

ECHO = "/test/Echo"
ROOT = Authority.root("root")


@pytest.fixture(scope="module")
def server_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server certificate for localhost, as files."""
    place = tmp_path_factory.mktemp("server")
    chain, key = ROOT.server("localhost", "127.0.0.1")
    (place / "chain.pem").write_text(chain)
    (place / "key.pem").write_bytes(key)
    return place


async def echo(call: ServerCall) -> None:
    while (message := await call.receive()) is not None:
        await call.send(message)


@asynccontextmanager
async def serving(place: Path, handler: Callable[[ServerCall], object] = echo) -> AsyncIterator[Served]:
    """A TLS server on loopback under the control loop."""
    context = grpc.server_context(str(place / "chain.pem"), str(place / "key.pem"))
    async with grpc.open_control_loop(), trio.open_nursery() as nursery:

        async def start(*, task_status: "trio.TaskStatus[Served]") -> None:
            await grpc.serve({ECHO: handler}, ssl_context=context, task_status=task_status)  # type: ignore[dict-item]

        served: Served = await nursery.start(start)
        yield served
        nursery.cancel_scope.cancel()


def to(port: int, host: str = "localhost", alternative_name: str | None = None) -> Target:
    return Target(host=host, port=port, alternative_name=alternative_name)


TRUST = PemRoots((ROOT.der,))


@trio_test
async def test_messages_go_both_ways(server_files: Path) -> None:
    async with serving(server_files) as served, grpc.open_channel(to(served.port), TRUST) as channel:
        stream = await channel.open_stream(ECHO, {"clusterid": "Kubernetes"})
        for message in (b"", b"one", b"x" * 300_000):
            await stream.send(message)
            assert await stream.receive() == message
        assert stream.answered
        await stream.send(b"last", last=True)

        assert [await stream.receive(), await stream.receive()] == [b"last", None]
        assert await channel.call(ECHO, b"question", {}) == b"question"


@trio_test
async def test_a_large_message_comes_in_pieces(server_files: Path) -> None:
    async with serving(server_files) as served, grpc.open_channel(to(served.port), TRUST) as channel:
        stream = await channel.open_stream(ECHO, {})
        await stream.send(b"y" * 200_000)

        assert await stream.begin_message() == 200_000
        with pytest.raises(WeBrokeProtocol):
            await stream.begin_message()
        sizes = []
        while piece := await stream.piece():
            sizes.append(len(piece))

        assert sizes == [65536, 65536, 65536, 3392]


@trio_test
async def test_the_server_sees_metadata_and_deadline(server_files: Path) -> None:
    seen: list[Mapping[str, str]] = []

    async def note(call: ServerCall) -> None:
        seen.append(call.metadata)
        assert call._stream.deadline is not None
        assert 3 < call._stream.deadline.time_remaining() <= 4
        await echo(call)

    async with serving(server_files, note) as served, grpc.open_channel(to(served.port), TRUST) as channel:
        with trio.fail_after(4):
            await channel.call(ECHO, b"", {"authorization": "Bearer t"})

    assert seen == [{"authorization": "Bearer t"}]


@trio_test
async def test_a_refusal_before_anything_else_is_a_status_without_answer(server_files: Path) -> None:
    async def refuse(_call: ServerCall) -> None:
        raise BadStatus(GrpcCode.UNAUTHENTICATED, "authentication failure")

    async with serving(server_files, refuse) as served, grpc.open_channel(to(served.port), TRUST) as channel:
        stream = await channel.open_stream(ECHO, {})
        with pytest.raises(BadStatus) as caught:
            await stream.receive()

    assert (caught.value.code, caught.value.message) == (GrpcCode.UNAUTHENTICATED, "authentication failure")
    assert not caught.value.answered


@trio_test
async def test_a_status_after_messages_is_a_status_with_answer(server_files: Path) -> None:
    async def abort(call: ServerCall) -> None:
        await call.send(b"one")
        raise BadStatus(GrpcCode.ABORTED, "enough")

    async with serving(server_files, abort) as served, grpc.open_channel(to(served.port), TRUST) as channel:
        stream = await channel.open_stream(ECHO, {})
        assert await stream.receive() == b"one"
        with pytest.raises(BadStatus) as caught:
            await stream.receive()

    assert (caught.value.code, caught.value.message) == (GrpcCode.ABORTED, "enough")
    assert caught.value.answered


@trio_test
async def test_a_server_that_ends_with_ok_before_us_ends_the_stream(server_files: Path) -> None:
    async def one(call: ServerCall) -> None:
        await call.send(b"one")

    async with serving(server_files, one) as served, grpc.open_channel(to(served.port), TRUST) as channel:
        stream = await channel.open_stream(ECHO, {})

        assert [await stream.receive(), await stream.receive()] == [b"one", None]


@trio_test
async def test_an_unknown_method_is_unimplemented(server_files: Path) -> None:
    async with serving(server_files) as served, grpc.open_channel(to(served.port), TRUST) as channel:
        with pytest.raises(BadStatus) as caught:
            await channel.call("/test/Nothing", b"", {})

    assert caught.value.code is GrpcCode.UNIMPLEMENTED


@trio_test
async def test_a_unary_call_needs_its_answer(server_files: Path) -> None:
    async def silent(call: ServerCall) -> None:
        await call.answer()

    async with serving(server_files, silent) as served, grpc.open_channel(to(served.port), TRUST) as channel:
        with pytest.raises(BadStatus, match="Missing response message"):
            await channel.call(ECHO, b"", {})


@trio_test
async def test_a_killed_server_ends_the_stream(server_files: Path) -> None:
    async with serving(server_files) as served, grpc.open_channel(to(served.port), TRUST) as channel:
        stream = await channel.open_stream(ECHO, {})
        await stream.send(b"x")
        await stream.receive()
        served.drop_connections()
        with pytest.raises(ConnectionEnded) as caught:
            await stream.receive()
        with pytest.raises(ConnectionEnded):
            await stream.send(b"x")
        with pytest.raises(ConnectionEnded):
            await channel.open_stream(ECHO, {})

    assert (caught.value.source, caught.value.answered) == ("Connection lost", True)


@trio_test
async def test_a_goaway_is_an_ordinary_end(server_files: Path) -> None:
    async with serving(server_files) as served, grpc.open_channel(to(served.port), TRUST) as channel:
        stream = await channel.open_stream(ECHO, {})
        await stream.send(b"x")
        await stream.receive()
        served.send_goaway()
        with pytest.raises(ConnectionEnded):
            await stream.receive()


@trio_test
async def test_unknown_frames_and_altsvc_change_nothing(server_files: Path) -> None:
    async with serving(server_files) as served, grpc.open_channel(to(served.port), TRUST) as channel:
        stream = await channel.open_stream(ECHO, {})
        await stream.send(b"x")
        await stream.receive()
        served.write_raw(b"\x00\x00\x03" + b"\xee\x00" + b"\x00\x00\x00\x00" + b"abc")  # type 0xee
        served.write_raw(
            b"\x00\x00\x05" + b"\x0a\x00" + b"\x00\x00\x00\x00" + b"\x00\x01abc"
        )  # ALTSVC, RFC 7838
        await stream.send(b"y")

        assert await stream.receive() == b"y"


@trio_test
async def test_an_empty_data_frame_is_no_end(server_files: Path) -> None:
    async def pause(call: ServerCall) -> None:
        await call.answer()
        for data in (b"\x00\x00\x00", b"", b"\x00\x02a", b"", b"b"):
            await grpc._from_asyncio(partial(call._stream._stream.send_data, data))
        await trio.sleep_forever()

    async with serving(server_files, pause) as served, grpc.open_channel(to(served.port), TRUST) as channel:
        stream = await channel.open_stream(ECHO, {})

        assert await stream.receive() == b"ab"


@trio_test
async def test_a_protocol_violation_ends_one_connection_and_not_the_loop(server_files: Path) -> None:
    async with serving(server_files) as served:
        async with grpc.open_channel(to(served.port), TRUST) as channel:
            stream = await channel.open_stream(ECHO, {})
            await stream.send(b"x")
            await stream.receive()
            served.write_raw(
                b"\x00\x00\x04" + b"\x08\x00" + b"\x00\x00\x00\x00" + b"\x00\x00\x00\x00"
            )  # window +0
            with pytest.raises(ConnectionEnded):
                await stream.receive()
        async with grpc.open_channel(to(served.port), TRUST) as channel:
            assert await channel.call(ECHO, b"again", {}) == b"again"


@trio_test
async def test_a_receive_cancelled_in_mid_message_spoils_the_stream(server_files: Path) -> None:
    async def half(call: ServerCall) -> None:
        await call.answer()
        await grpc._from_asyncio(lambda: call._stream._stream.send_data(b"\x00\x00\x00\x00\x09abc"))
        await trio.sleep_forever()

    async with serving(server_files, half) as served, grpc.open_channel(to(served.port), TRUST) as channel:
        stream = await channel.open_stream(ECHO, {})
        with trio.move_on_after(0.1) as scope:
            await stream.receive()
        assert scope.cancelled_caught
        with pytest.raises(WeBrokeProtocol):
            await stream.piece()


@pytest.mark.parametrize(
    ("sent", "text"),
    [
        (b"\x00\xff\xff\xff\xff", "message length too large: found 4294967295 bytes"),
        (b"\x01\x00\x00\x00\x01x", "compressed"),
        (b"\x00\x00\x00\x00\x09abc", "cut short"),
        (b"\x00\x00", "cut short"),
    ],
)
@trio_test
async def test_a_broken_message_is_named(server_files: Path, sent: bytes, text: str) -> None:
    async def break_it(call: ServerCall) -> None:
        await call.answer()
        await grpc._from_asyncio(lambda: call._stream._stream.send_data(sent))

    async with (
        serving(server_files, break_it) as served,
        grpc.open_channel(to(served.port), TRUST) as channel,
    ):
        stream = await channel.open_stream(ECHO, {})
        with pytest.raises(BadMessage, match=text):
            await stream.receive()


@trio_test
async def test_a_stream_that_ends_without_status_is_unknown(server_files: Path) -> None:
    async def end(call: ServerCall) -> None:
        await call.answer()
        await grpc._from_asyncio(lambda: call._stream._stream.send_data(b"", end_stream=True))
        call._stream._send_trailing_metadata_done = True

    async with serving(server_files, end) as served, grpc.open_channel(to(served.port), TRUST) as channel:
        stream = await channel.open_stream(ECHO, {})
        with pytest.raises(BadStatus, match="without trailers"):
            await stream.receive()


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


@pytest.mark.parametrize("roots", [PemRoots(()), PemRoots((Authority.root("other").der,))])
@trio_test
async def test_a_server_of_another_root_is_refused(server_files: Path, roots: PemRoots) -> None:
    async with serving(server_files) as served:
        with pytest.raises(NotConnected, match="invalid peer certificate: "):
            async with grpc.open_channel(to(served.port), roots):
                raise AssertionError("connected")


@trio_test
async def test_a_root_that_cannot_be_used_does_not_spoil_the_others(server_files: Path) -> None:
    roots = PemRoots((b"junk", ROOT.der))
    async with serving(server_files) as served, grpc.open_channel(to(served.port), roots) as channel:
        assert await channel.call(ECHO, b"x", {}) == b"x"


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


def test_names_match_as_rfc_6125_says() -> None:
    certificate = {
        "subjectAltName": (
            ("DNS", "istiod.istio-system.svc"),
            ("DNS", "*.Example.com"),
            ("IP Address", "10.0.0.1"),
        )
    }
    matches = ["istiod.istio-system.svc", "ISTIOD.istio-system.svc", "a.example.com", "10.0.0.1"]
    others = ["istiod", "example.com", "a.b.example.com", "10.0.0.2", "*.com", "", "svc"]

    assert all(name_matches(certificate, name) for name in matches)
    assert not any(name_matches(certificate, name) for name in others)
    assert not name_matches({}, "a")
    assert not name_matches({"subjectAltName": (("DNS", "*.com"),)}, "example.com")


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
        before = (count_tasks(), len(os.listdir("/proc/self/fd")))
        for step in range(12):
            await once(step)
        await settled(served)

        assert (count_tasks(), len(os.listdir("/proc/self/fd"))) == before


async def settled(served: Served) -> None:
    """Wait until the server has noticed that its clients are gone."""
    with trio.fail_after(5):
        while served.connections:  # noqa: ASYNC110  a foreign loop sets no event
            await trio.sleep(0.01)
    await trio.sleep(0.05)
