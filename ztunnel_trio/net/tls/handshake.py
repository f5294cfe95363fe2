"""TLS handshakes on a connection's own descriptor, and how a peer that is refused learns of it.

`do_handshake` runs on the non-blocking descriptor and waits with `trio.lowlevel`. A storm of new peers must
not stall open connections: no more than a few handshake steps (0.75 ms each) are done in one turn of the
loop. The limit is held while computing, never while waiting for a peer.

*A refused peer is told why.* Where OpenSSL decides, it has written an alert. Where we decide, after the
handshake, CPython's `ssl` can write none; what the caller's `farewell` says in the protocol above goes out
instead, and close_notify. Then our side is shut down and what the peer still sends is read and thrown away
until it closes, or not for long: closing a socket with unread bytes in it sends RST, which takes back what
the peer has not read yet.
"""

import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

import trio

from ztunnel_trio.facts.network import ALPN_H2
from ztunnel_trio.model.certificate import WorkloadCertificate
from ztunnel_trio.model.ending import Ending, TlsCause, TlsRefused
from ztunnel_trio.model.identity import SpiffeId
from ztunnel_trio.net.tls.contexts import TlsContexts
from ztunnel_trio.net.tls.failures import TlsFailed, tls_ending
from ztunnel_trio.net.tls.peer import TlsPeer, Verdict, judge_client, judge_server, proven_peer
from ztunnel_trio.wire.client_hello import MOST_BYTES, NO_APPLICATION_PROTOCOL, Incomplete, offered_protocols

DRAIN_SECONDS: Final = 1.0  # for a refused peer to read why and close
_DRAIN_BYTES: Final = 262_144  # and what it may send meanwhile
_PIECE_BYTES: Final = 65_536
_FIRST_LOOK_BYTES: Final = 4096  # of a first flight; nearly all are shorter


class Secured(NamedTuple):
    """A finished handshake. `tls` owns the descriptor."""

    tls: ssl.SSLSocket
    peer: TlsPeer


Farewell = Callable[[Ending], bytes]
"""What a peer that is refused after the handshake is told, as bytes of the protocol above TLS."""


async def accept_tls(
    sock: socket.socket,
    certificate: WorkloadCertificate,
    *,
    contexts: TlsContexts,
    verdict: Verdict | None = None,
    farewell: Farewell | None = None,
) -> Secured:
    """The accepting side of a handshake: the peer must show a certificate of our trust domain.

    Takes the descriptor over: `sock` is empty afterwards (closing it does nothing), and unless a `Secured`
    is returned the connection is closed, on cancellation too. The caller sets the deadline.

    Raises:
        TlsFailed: no handshake, or not with a peer we accept; the peer was told.
        TlsMisconfigured: OpenSSL does not take our certificate.
        OSError: the connection broke.
    """

    def judge(peer: TlsPeer) -> Ending | None:
        return judge_client(peer, certificate) or (verdict(peer) if verdict else None)

    with _Closing(sock) as closing:
        await _check_protocols(sock)
        context = contexts.server_context(certificate)
        return await _secure(closing, certificate, context, contexts.steps, judge, farewell, server_side=True)


async def connect_tls(
    sock: socket.socket,
    certificate: WorkloadCertificate,
    expected: Sequence[SpiffeId],
    *,
    contexts: TlsContexts,
    verdict: Verdict | None = None,
    farewell: Farewell | None = None,
) -> Secured:
    """The dialling side of a handshake: the peer must show one of the `expected` identities.

    With TLS 1.3 the peer judges our certificate only after this has returned: its refusal comes with the
    first read, as an alert that `tls_ending` names. Ownership and errors are those of `accept_tls`.

    Raises:
        TlsFailed: no handshake, or not with a peer we expect; the peer was told.
        TlsMisconfigured: OpenSSL does not take our certificate.
        OSError: the connection broke.
    """

    def judge(peer: TlsPeer) -> Ending | None:
        return judge_server(peer, expected) or (verdict(peer) if verdict else None)

    with _Closing(sock) as closing:
        context = contexts.client_context(certificate)
        return await _secure(
            closing, certificate, context, contexts.steps, judge, farewell, server_side=False
        )


class _Closing:
    """Owns a connection until it is `released`; wrapping it moves the descriptor to another object."""

    __slots__ = ("sock",)

    def __init__(self, sock: socket.socket) -> None:
        self.sock: socket.socket | None = sock

    def __enter__(self) -> "_Closing":
        return self

    def __exit__(self, *_: object) -> None:
        if self.sock is not None:
            self.sock.close()

    def wrap(self, context: ssl.SSLContext, *, server_side: bool) -> ssl.SSLSocket:
        assert self.sock is not None
        tls = context.wrap_socket(self.sock, server_side=server_side, do_handshake_on_connect=False)
        self.sock = tls
        return tls

    def release(self) -> None:
        self.sock = None


async def _secure(
    closing: _Closing,
    own: WorkloadCertificate,
    context: ssl.SSLContext,
    steps: trio.CapacityLimiter,
    judge: Verdict,
    farewell: Farewell | None,
    *,
    server_side: bool,
) -> Secured:
    try:
        tls = closing.wrap(context, server_side=server_side)
    except ssl.SSLError as error:
        raise TlsFailed(tls_ending(error)) from error
    wait: Callable[[ssl.SSLSocket], Awaitable[None]] | None = None
    try:
        while True:
            if wait is not None:
                await wait(tls)
            async with steps:
                try:
                    tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    wait = trio.lowlevel.wait_readable
                except ssl.SSLWantWriteError:
                    wait = trio.lowlevel.wait_writable
        peer = proven_peer(tls, own)
        refusal = judge(peer)
    except ssl.SSLError as error:
        await _let_read(tls)  # OpenSSL's alert
        raise TlsFailed(tls_ending(error)) from error
    except TlsFailed as error:
        await _refuse(tls, error.ending, farewell)
        raise
    if refusal is not None:
        await _refuse(tls, refusal, farewell)
        raise TlsFailed(refusal)
    closing.release()
    return Secured(tls, peer)


async def _refuse(tls: ssl.SSLSocket, ending: Ending, farewell: Farewell | None) -> None:
    """Tell a peer, after the handshake, why it is refused."""
    with suppress(OSError, ValueError):  # a peer that is gone need not be told
        if farewell is not None:
            tls.write(farewell(ending))
        tls.unwrap()  # wants the peer's close_notify, too: it comes or it does not
    await _let_read(tls)


async def _let_read(sock: socket.socket) -> None:
    """Send FIN, and take what the peer still sends until it closes, for a short time."""
    with suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_WR)
        with trio.move_on_after(DRAIN_SECONDS):
            taken = 0
            while taken < _DRAIN_BYTES:
                try:
                    data = socket.socket.recv(sock, _PIECE_BYTES)  # not TLS's: it is at its end
                except BlockingIOError:
                    await trio.lowlevel.wait_readable(sock)
                    continue
                if not data:
                    return
                taken += len(data)


async def _check_protocols(sock: socket.socket) -> None:
    """Refuse a client that offers application protocols, but not ours; its bytes stay in the socket."""
    offered = await _offered(sock)
    if offered and ALPN_H2.encode() not in offered:
        with suppress(OSError):
            sock.send(NO_APPLICATION_PROTOCOL)
        await _let_read(sock)
        raise TlsFailed(TlsRefused(TlsCause.NO_COMMON_PROTOCOL))


async def _offered(sock: socket.socket) -> tuple[bytes, ...]:
    """The application protocols of a ClientHello, once it has come whole, however it was cut."""
    wanted, seen, is_marked = _FIRST_LOOK_BYTES, -1, False
    try:
        while True:
            try:
                data = sock.recv(wanted, socket.MSG_PEEK)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(sock)
                continue
            found = offered_protocols(data)
            if not isinstance(found, Incomplete):
                return found
            if len(data) <= seen or found.wanted > MOST_BYTES:
                return ()  # its end has come, or no hello is so long: OpenSSL says what is wrong
            seen, wanted = len(data), max(found.wanted, _FIRST_LOOK_BYTES)
            # Until then the kernel calls it unreadable (socket(7)): what is peeked at stays in the queue.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, found.wanted)
            is_marked = True
            await trio.lowlevel.wait_readable(sock)
    finally:
        if is_marked:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
