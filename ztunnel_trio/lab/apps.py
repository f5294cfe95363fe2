"""The applications inside pods: Trio tasks of the lab's process on sockets that belong to the pod.

`run_app` accepts on a port of a host and gives every connection to a handler in a task of its own. Handlers
end with their connection; a broken one is nobody's fault here.
"""

import hashlib
import json
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import h11
import trio

from ztunnel_trio.lab import http
from ztunnel_trio.lab.hosts import Host, peer_of
from ztunnel_trio.model.address import SocketAddress

Handler = Callable[[trio.SocketStream], Awaitable[None]]

_READ_BYTES: Final = 256 * 1024
_CALL_SECONDS: Final = 10.0


@dataclass(slots=True, eq=False)
class App:
    """A running application: who has connected, in order, and how many still are."""

    host: Host
    port: int
    peers: list[SocketAddress] = field(default_factory=list)
    open_connections: int = 0

    @property
    def address(self) -> SocketAddress:
        return SocketAddress(self.host.ip, self.port)


async def run_app(
    host: Host,
    port: int,
    handler: Handler,
    *,
    task_status: trio.TaskStatus[App] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; port 0 picks one.

    Raises:
        OSError: the port is taken.
    """
    listener = host.listen(port)
    app = App(host, listener.socket.getsockname()[1])

    async def serve(stream: trio.SocketStream) -> None:
        app.open_connections += 1
        try:
            async with stream:
                app.peers.append(peer_of(stream))
                await handler(stream)
        except (OSError, trio.BrokenResourceError, h11.RemoteProtocolError):
            pass  # the peer's business
        finally:
            app.open_connections -= 1

    async with trio.open_nursery() as nursery:
        task_status.started(app)
        await trio.serve_listeners(serve, [listener], handler_nursery=nursery)


async def echo(stream: trio.SocketStream) -> None:
    """Give back whatever comes, then the end."""
    while data := await stream.receive_some(_READ_BYTES):
        await stream.send_all(data)
    await stream.send_eof()


async def whoami(stream: trio.SocketStream) -> None:
    """Speak first: the address the connection seems to come from. Then wait for the end."""
    peer = peer_of(stream)
    await stream.send_all(f"{peer.ip} {peer.port}\n".encode())
    await stream.send_eof()
    while await stream.receive_some(_READ_BYTES):
        pass


async def digest(stream: trio.SocketStream) -> None:
    """Read to the end, then tell length and SHA-256."""
    seen, length = hashlib.sha256(), 0
    while data := await stream.receive_some(_READ_BYTES):
        seen.update(data)
        length += len(data)
    await stream.send_all(f"{length} {seen.hexdigest()}".encode())
    await stream.send_eof()


def source(length: int) -> Handler:
    """Send that many bytes of `payload`, then the end."""

    async def send(stream: trio.SocketStream) -> None:
        block = payload(min(length, 1 << 20))
        for start in range(0, length, len(block) or 1):
            await stream.send_all(block[: length - start])
        await stream.send_eof()
        while await stream.receive_some(_READ_BYTES):
            pass

    return send


async def sink(stream: trio.SocketStream) -> None:
    """Read and forget."""
    while await stream.receive_some(_READ_BYTES):
        pass


def payload(length: int, seed: bytes = b"ztunnel") -> bytes:
    """Bytes that look random and are the same every time."""
    return hashlib.shake_128(seed).digest(length)


@dataclass(frozen=True, slots=True)
class Hop:
    """One service's part of a chained call, as it told the caller."""

    name: str
    client: str
    status: int
    error: str | None = None
    marker: str = ""


@dataclass(slots=True, eq=False)
class Hello:
    """The workshop's web service: answers GET with its name, and first calls the next one in the chain.

    The reply is JSON: `{"name", "client", "marker", "upstream": reply | {"error": text} | null}`. `marker`
    repeats the `x-marker` header, which is passed on along the chain.
    """

    name: str
    host: Host
    upstream: SocketAddress | None = None

    async def __call__(self, stream: trio.SocketStream) -> None:
        request = await http.read_request(stream)
        if request is None:
            return
        marker = request.headers.get("x-marker", "")
        reply: dict[str, object] = {
            "name": self.name,
            "client": str(peer_of(stream).ip),
            "marker": marker,
            "greeting": f"Hello from {self.name}",
            "upstream": None,
        }
        status = 200
        if self.upstream is not None:
            try:
                response = await call(self.host, self.upstream, marker=marker)
                reply["upstream"], status = json.loads(response.body), response.status
            except CallFailed as error:
                reply["upstream"], status = {"error": str(error)}, 502
        await http.answer(stream, status, json.dumps(reply).encode(), "application/json")


class CallFailed(Exception):
    """An HTTP call of an application got no answer; the text is what its program would see."""


async def call(
    host: Host, target: SocketAddress, *, marker: str = "", path: str = "/", seconds: float = _CALL_SECONDS
) -> http.HttpAnswer:
    """GET as a program in this host would, for at most so long.

    Raises:
        CallFailed: no answer.
    """
    try:
        with trio.fail_after(seconds):
            stream = await host.connect(target)
            async with stream:
                return await http.fetch(stream, path, host=str(target), headers={"x-marker": marker})
    except trio.TooSlowError as error:
        raise CallFailed(f"no answer within {math.ceil(seconds)} s") from error
    except OSError as error:
        raise CallFailed(error.strerror or str(error)) from error
    except trio.BrokenResourceError as error:
        cause = error.__cause__
        raise CallFailed(cause.strerror if isinstance(cause, OSError) else str(error)) from error
    except h11.RemoteProtocolError as error:
        raise CallFailed(str(error)) from error


def hops(body: bytes) -> Sequence[Hop]:
    """A chained call's answer, from the first service called to the last.

    Raises:
        ValueError: it is not what `Hello` says.
    """
    found: list[Hop] = []
    reply: object = json.loads(body)
    while isinstance(reply, dict):
        if "error" in reply:
            found.append(Hop("", "", 0, error=str(reply["error"])))
            break
        found.append(Hop(str(reply["name"]), str(reply["client"]), 200, marker=str(reply["marker"])))
        reply = reply["upstream"]
    return found
