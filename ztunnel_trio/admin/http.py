"""HTTP/1.x for operators, over h11: a few connections, small requests, exact paths, no TLS.

Theory of operation. A connection is one task. Reading a request is a wait that a stranger can stretch: its
head has one deadline, however it trickles in, which also bounds an idle connection, and its body has another;
writing has one for each piece. The number of connections is bounded; who only waits gives way to a newcomer
(`places`). When `stop` is set, listeners close, idle connections end, and a request that is being answered
is finished first.
"""

import re
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qsl

import h11
import trio

from ztunnel_trio.admin.places import ConnectionPlace, ConnectionPlaces
from ztunnel_trio.net.listener import Accepted, Listener
from ztunnel_trio.observe.log import Bare, get_logger

log = get_logger("hyper_util")

READ_BYTES: Final = 8192
LONGEST_BODY_BYTES: Final = 64 * 1024  # nothing here has one; what comes is read and dropped
TEXT: Final = "text/plain"

# A request line that may still become a valid one; the target is a path, `*` or absolute.
START: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]*( (/|\*|[Hh]|$)|$)")
LINE: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+ [\x21-\x7e\x80-\xff]+ HTTP/1\.[01]\r?")


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSettings:
    """Limits of one server."""

    head_seconds: float = 2.0  # for all of it; ztunnel src/hyper_util.rs, also while a connection is idle
    body_seconds: float = 5.0  # for all of it
    write_seconds: float = 30.0  # a reader that takes nothing for so long is gone
    head_bytes: int = 8192  # ztunnel src/hyper_util.rs max_buf_size; more is 431
    most_connections: int = 64


Send = Callable[[bytes], Awaitable[None]]
Pieces = Callable[[Send], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpResponse:
    """An answer. A body of `Pieces` writes itself, piece by piece, and is sent as it comes."""

    status: int = 200
    content_type: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes | Pieces = b""


def plain(status: int, text: str) -> HttpResponse:
    """Plain text."""
    return HttpResponse(status=status, content_type=TEXT, body=text.encode("utf-8", "replace"))


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request's head; the target is split at its first `?`."""

    method: str
    path: str
    query: str
    headers: Sequence[tuple[str, str]]

    def parameters(self) -> dict[str, str]:
        """The query's pairs, form-urlencoded; of a repeated key the last one counts.

        Raises:
            ValueError: more pairs than anybody means.
        """
        return dict(parse_qsl(self.query, keep_blank_values=True, max_num_fields=100, errors="replace"))

    def all(self, name: str) -> list[str]:
        """Every value of a header, in order; the name in lower case."""
        return [value for found, value in self.headers if found == name]


Handler = Callable[[HttpRequest], Awaitable[HttpResponse]]


@dataclass(slots=True, eq=False)
class HttpServer:
    """One component's server: `routes` maps exact paths to handlers; anything else is 404."""

    component: str
    listeners: Sequence[Listener]
    routes: Mapping[str, Handler]
    settings: HttpSettings = field(default_factory=HttpSettings)
    _idle: set[trio.CancelScope] = field(default_factory=set, init=False)
    _stopping: bool = field(default=False, init=False)

    async def run(
        self, stop: trio.Event, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until `stop` is set and the last request is answered. Owns and closes the listeners."""
        about = {"address": Bare(self.listeners[0].address), "component": self.component}
        places = ConnectionPlaces(self.settings.most_connections)
        try:
            async with trio.open_nursery() as connections:
                async with trio.open_nursery() as accepting:
                    for listener in self.listeners:
                        accepting.start_soon(self._accept, listener, connections, places)
                    log.info("listener established", extra={"fields": about})
                    task_status.started()
                    await stop.wait()
                    accepting.cancel_scope.cancel(reason="stopping")
                self._close_listeners()
                self._stopping = True
                for scope in self._idle:
                    scope.cancel(reason="stopping")
            log.info("listener drained", extra={"fields": about})
        finally:
            self._close_listeners()

    def _close_listeners(self) -> None:
        for listener in self.listeners:
            listener.close()

    async def _accept(self, listener: Listener, connections: trio.Nursery, places: ConnectionPlaces) -> None:
        while True:
            accepted = await listener.accept()
            place: ConnectionPlace | None = None
            try:
                place = await places.take(accepted.peer.ip)
                connections.start_soon(self._serve_one, accepted, places, place)
            finally:
                if place is None:
                    accepted.sock.close()

    async def _serve_one(self, accepted: Accepted, places: ConnectionPlaces, place: ConnectionPlace) -> None:
        """Where a connection's failure stops travelling."""
        try:
            with place.scope:
                async with open_stream(accepted.sock) as stream:
                    await HttpConnection(self, stream, place).run()
        except* (OSError, trio.BrokenResourceError, trio.TooSlowError) as group:
            log.debug("connection ended: %s", group.exceptions[0])
        except* Exception as group:  # a bug: loud, and contained in this connection
            log.error("connection handler failed", exc_info=group)
        finally:
            places.leave(place)

    async def answer(self, request: HttpRequest) -> HttpResponse:
        """The handler's response; its failure is a 500 with the error's text."""
        handler = self.routes.get(request.path)
        if handler is None:
            return HttpResponse(status=404)
        try:
            return await handler(request)
        except Exception as error:  # noqa: BLE001  an operator's request must not end the server
            log.warning("failed to answer %s: %s", request.path, error)
            return HttpResponse(status=500, body=str(error).encode("utf-8", "replace"))

    def waiting(self, deadline: float) -> trio.CancelScope:
        """The scope of one wait for a request; cancelled when its time is over or the server stops."""
        scope = trio.CancelScope(deadline=deadline)
        if self._stopping:
            scope.cancel(reason="stopping")
        return scope


def open_stream(sock: socket.socket) -> trio.SocketStream:
    """The stream of an accepted socket; owns it."""
    return trio.SocketStream(trio.socket.from_stdlib_socket(sock))


class HttpConnection:
    """One connection: requests in, responses out, until one side has enough."""

    def __init__(self, server: HttpServer, stream: trio.abc.Stream, place: ConnectionPlace) -> None:
        self._place = place
        self._server = server
        self._stream = stream
        self._settings = server.settings
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=server.settings.head_bytes)

    async def run(self) -> None:
        """Serve requests one after the other."""
        while (request := await self._next_request()) is not None:
            self._place.work()
            response = await self._server.answer(request)
            await self._respond(request.method, response)
            if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                return
            self._http.start_next_cycle()

    async def _next_request(self) -> HttpRequest | None:
        """The next request with its body read away; None when there is none to answer."""
        request: HttpRequest | None = None
        size, deadline = 0, trio.current_time() + self._settings.head_seconds
        while True:
            try:
                event = self._http.next_event()
                if event is h11.NEED_DATA:
                    if not await self._read(deadline, is_head=request is None):
                        return None
                    continue
            except h11.RemoteProtocolError as error:
                await self._refuse(error.error_status_hint)
                return None
            match event:
                case h11.Request():
                    path, _, query = event.target.decode("latin-1").partition("?")
                    headers = [(name.decode(), value.decode("latin-1")) for name, value in event.headers]
                    request = HttpRequest(event.method.decode(), path, query, headers)
                    deadline = trio.current_time() + self._settings.body_seconds
                case h11.Data():
                    size += len(event.data)
                    if size > LONGEST_BODY_BYTES:
                        await self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
                        return None
                case h11.EndOfMessage():
                    return request
                case _:  # the connection was closed, or something else than HTTP follows
                    return None

    async def _read(self, deadline: float, *, is_head: bool) -> bool:
        """Feed h11 once; whether the connection goes on. An impossible request line is answered at once."""
        if self._http.they_are_waiting_for_100_continue:
            await self._write(h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue"))
        scope = self._server.waiting(deadline)
        self._place.wait_for_request()
        if is_head:
            self._server._idle.add(scope)
        try:
            with scope:
                data = await self._stream.receive_some(READ_BYTES)
        finally:
            self._server._idle.discard(scope)
        if scope.cancelled_caught:
            return False
        self._http.receive_data(bytes(data))
        if is_head and not could_be_http(self._http.trailing_data[0]):
            raise h11.RemoteProtocolError("illegal request line")
        return True

    async def _respond(self, method: str, response: HttpResponse) -> None:
        status = HTTPStatus(response.status)
        headers = [("date", formatdate(usegmt=True)), *response.headers]
        if response.content_type is not None:
            headers.insert(0, ("content-type", response.content_type))
        if isinstance(response.body, bytes):
            headers.append(("content-length", str(len(response.body))))
        head = h11.Response(status_code=status, headers=headers, reason=status.phrase.encode())
        await self._write(head)
        if method != "HEAD":
            if isinstance(response.body, bytes):
                if response.body:
                    await self._write(h11.Data(data=response.body))
            else:
                await response.body(self._send_piece)
        await self._write(h11.EndOfMessage())

    async def _send_piece(self, piece: bytes) -> None:
        if piece:
            await self._write(h11.Data(data=piece))

    async def _refuse(self, status: int) -> None:
        """Answer a request that could not be read; the connection ends."""
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        known = HTTPStatus(status)
        headers = [("date", formatdate(usegmt=True)), ("content-length", "0"), ("connection", "close")]
        await self._write(h11.Response(status_code=status, headers=headers, reason=known.phrase.encode()))
        await self._write(h11.EndOfMessage())

    async def _write(
        self, event: h11.Response | h11.InformationalResponse | h11.Data | h11.EndOfMessage
    ) -> None:
        data = self._http.send(event)
        if data:
            self._place.wait_for_reader()
            with trio.fail_after(self._settings.write_seconds):
                await self._stream.send_all(data)
            self._place.work()


def could_be_http(head: bytes) -> bool:
    """Whether the beginning of a request may still become a request line of HTTP/1.x."""
    line, newline, _ = head.lstrip(b"\r\n").partition(b"\n")
    return bool(LINE.fullmatch(line) if newline else START.match(line))
