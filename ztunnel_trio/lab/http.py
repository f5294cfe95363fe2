"""The little HTTP/1.1 the lab needs, over h11: one request on a stream, one answer to one request."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import h11
import trio

_READ_BYTES = 65536
_LONGEST_BODY_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode(errors="replace")


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


async def fetch(
    stream: trio.abc.Stream,
    path: str,
    *,
    method: str = "GET",
    host: str = "localhost",
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
) -> HttpAnswer:
    """One request and its whole answer; the stream is for this request only. The caller sets the deadline.

    Raises:
        OSError, BrokenResourceError: the stream broke.
        RemoteProtocolError: it ended early, or what came is not HTTP.
    """
    connection = h11.Connection(h11.CLIENT)
    fields = [("host", host), ("connection", "close"), *(headers or {}).items()]
    if body:
        fields.append(("content-length", str(len(body))))
    await _send(stream, connection, h11.Request(method=method, target=path, headers=fields))
    if body:
        await _send(stream, connection, h11.Data(data=body))
    await _send(stream, connection, h11.EndOfMessage())
    head: h11.Response | None = None
    received = bytearray()
    while True:
        match await _next(stream, connection):
            case h11.Response() as response:
                head = response
            case h11.Data(data=piece):
                received += piece
                if len(received) > _LONGEST_BODY_BYTES:
                    raise h11.RemoteProtocolError("body too long")
            case h11.EndOfMessage():
                assert head is not None
                return HttpAnswer(head.status_code, _fields(head.headers), bytes(received))
            case h11.ConnectionClosed():
                raise h11.RemoteProtocolError("the connection ended without an answer")


async def read_request(stream: trio.abc.Stream) -> Request | None:
    """The one request of a connection; None when the peer closes without asking.

    Raises:
        BrokenResourceError: the stream broke.
        RemoteProtocolError: what came is not HTTP.
    """
    connection = h11.Connection(h11.SERVER)
    head: h11.Request | None = None
    received = bytearray()
    while True:
        match await _next(stream, connection):
            case h11.Request() as request:
                head = request
            case h11.Data(data=piece):
                received += piece
            case h11.EndOfMessage():
                assert head is not None
                fields = _fields(head.headers)
                return Request(head.method.decode(), head.target.decode(), fields, bytes(received))
            case h11.ConnectionClosed():
                return None


async def answer(stream: trio.abc.Stream, status: int, body: bytes, content_type: str = "text/plain") -> None:
    """Send a response and say that it was the last.

    Raises:
        BrokenResourceError: the stream broke.
    """
    head = (
        f"HTTP/1.1 {status} {'OK' if status < 400 else 'Error'}\r\ncontent-type: {content_type}\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    await stream.send_all(head.encode() + body)


async def _send(stream: trio.abc.Stream, connection: h11.Connection, event: h11.Event) -> None:
    if data := connection.send(event):
        await stream.send_all(data)


async def _next(stream: trio.abc.Stream, connection: h11.Connection) -> h11.Event:
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Event):
            return event
        if event is h11.NEED_DATA:
            connection.receive_data(bytes(await stream.receive_some(_READ_BYTES)))
        else:
            raise h11.RemoteProtocolError("more than one message")


def _fields(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    return {name.decode().lower(): value.decode() for name, value in headers}
