"""A hostile peer: one TLS connection, one kind of flood, for some seconds. In a process of its own, so that
nobody's measuring waits for it.

    python -m tests.hostile.flooder KIND IP:PORT AUTHORITY SECONDS CERTIFICATES

With AUTHORITY `-` it is the server: it listens on IP:PORT, says `ready`, and floods the first that comes once
that has asked for a stream.

CERTIFICATES is a directory with chain.pem, key.pem and roots.pem. Prints JSON: bytes sent, and the code of
the GOAWAY that cut it off, null for none.
"""

import json
import select
import socket
import ssl
import sys
import time
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from tests.fakes.http2 import CONNECT, Frame, FrameFactory, read_frames
from tests.hostile.floods import FLOODS, SERVER_FLOODS, STREAM
from ztunnel_trio.wire.http2.frames import GOAWAY, HEADER_BYTES, HEADERS, PREFACE

ANSWER_SECONDS = 10.0


@dataclass
class Attack:
    """The connection, and what was read of it."""

    tls: ssl.SSLSocket
    sent: int = 0
    goaway: int | None = None
    is_answered: bool = False
    is_over: bool = False
    _got: bytearray = field(default_factory=bytearray)

    def send(self, data: bytes, until: float) -> None:
        """Send it, reading what comes meanwhile, as long as there is time and the peer lives."""
        view = memoryview(data)
        while view and not self.is_over and time.monotonic() < until:
            try:
                count_sent = self.tls.send(view)
            except ssl.SSLWantWriteError:
                select.select([self.tls], [self.tls], [], 0.1)
            except OSError:
                break
            else:
                self.sent += count_sent
                view = view[count_sent:]
            self.read()

    def read(self) -> None:
        """Read what is there."""
        try:
            while not self.is_over:
                piece = self.tls.recv(1 << 16)
                self._got += piece
                self.is_over = not piece
        except ssl.SSLWantReadError:
            pass
        except OSError:
            self.is_over = True
        for frame in self._frames():
            if frame.kind == GOAWAY:
                self.goaway = int.from_bytes(frame.payload[4:8], "big")
            self.is_answered |= frame.kind == HEADERS and frame.stream_id == STREAM

    def _frames(self) -> list[Frame]:
        """The frames that have come whole."""
        if self._got.startswith(PREFACE):
            del self._got[: len(PREFACE)]
        end = 0
        while len(self._got) >= end + HEADER_BYTES:
            whole = end + HEADER_BYTES + int.from_bytes(self._got[end : end + 3], "big")
            if whole > len(self._got):
                break
            end = whole
        frames = list(read_frames(bytes(self._got[:end])))
        del self._got[:end]
        return frames

    def wait(self, seconds: float) -> None:
        """Read for a while, until the connection is over or the stream was answered."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.is_over and not self.is_answered:
            select.select([self.tls], [], [], 0.1)
            self.read()


def secure(sock: socket.socket, certificates: Path, *, is_server: bool) -> Attack:
    """An authenticated connection over this socket."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if is_server else ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(certificates / "roots.pem")
    context.load_cert_chain(certificates / "chain.pem", certificates / "key.pem")
    context.set_alpn_protocols(["h2"])
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    tls = context.wrap_socket(sock, server_side=is_server)
    tls.setblocking(False)
    return Attack(tls)


def accept(address: tuple[str, int], certificates: Path) -> Attack:
    """The first connection that comes."""
    with socket.create_server(address) as listener:
        listener.settimeout(ANSWER_SECONDS)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sock, _ = listener.accept()
    return secure(sock, certificates, is_server=True)


def main(kind: str, target: str, authority: str, seconds: float, certificates: Path) -> None:
    """See the module's text."""
    ip, _, port = target.rpartition(":")
    make, address = FrameFactory(), (ip, int(port))
    is_server = authority == "-"
    if is_server:
        attack = accept(address, certificates)
        greeting = make.settings() + make.settings(ack=True)
    else:
        sock = socket.create_connection(address, timeout=ANSWER_SECONDS)
        attack = secure(sock, certificates, is_server=False)
        fields = [CONNECT[0], (":authority", authority)]
        greeting = make.preface() + make.settings(ack=True) + make.headers(STREAM, fields)
    attack.send(greeting, time.monotonic() + ANSWER_SECONDS)
    attack.wait(ANSWER_SECONDS)
    assert attack.is_answered, "nobody asked, or answered"
    attack.is_answered = False
    flood = (SERVER_FLOODS if is_server else FLOODS)[kind]
    ids, until = count(STREAM + 2, 2), time.monotonic() + seconds
    while time.monotonic() < until and not attack.is_over and attack.goaway is None:
        attack.send(flood.piece(ids), until)
    attack.wait(1.0)
    sys.stdout.write(json.dumps({"sent": attack.sent, "goaway": attack.goaway}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4]), Path(sys.argv[5]))
