"""Questions in datagrams: read in turns, answered on the spot or by a task.

What is over a pod's share is not read: the kernel keeps what its buffer holds and drops the rest. How much
that was is its own count (`SO_MEMINFO`).
"""

import errno
import logging
import socket
from dataclasses import dataclass
from struct import Struct
from typing import Final

import trio

from ztunnel_trio.dns.answers import NameAnswers
from ztunnel_trio.dns.forward import Via
from ztunnel_trio.dns.settings import DnsMetrics
from ztunnel_trio.dns.share import Share
from ztunnel_trio.wire.dns import (
    UDP_LIMIT,
    OtherOperation,
    Query,
    Unanswerable,
    cut_to,
    read_request,
)

log = logging.getLogger("ztunnel::dns::server")

MAX_DATAGRAM: Final = 65535
FORWARD_SECONDS: Final = 0.0003  # what passing a question on takes of the loop (tests.benchmarks.dns)
SO_MEMINFO: Final = 55  # linux/socket.h; the stdlib lacks it
_MEMINFO: Final = Struct("=9I")  # linux/sock_diag.h SK_MEMINFO_*; the last one counts what was dropped

Source = tuple[str, int] | tuple[str, int, int, int]
"""Where a datagram came from, as the socket module has it; handed back to it unread."""


@dataclass(slots=True, eq=False)
class UdpPort:
    """One bound datagram socket of a name server. `in_flight` owns the tasks of questions that wait."""

    sock: socket.socket
    answers: NameAnswers
    share: Share
    metrics: DnsMetrics
    in_flight: trio.Nursery
    _dropped: int = 0

    async def serve(self) -> None:
        """Answer until cancelled."""
        sock, share = self.sock, self.share
        while True:
            await trio.lowlevel.wait_readable(sock)
            share.begin()
            while not share.is_over:
                try:
                    datagram, source = sock.recvfrom(MAX_DATAGRAM)
                except BlockingIOError:
                    break
                except OSError as error:  # an ICMP error about an earlier answer: that client is gone
                    log.debug("receive: %s", error)
                    continue
                if source[1] != 0:  # nobody can be answered at port 0
                    self._receive(datagram, source)
            await share.rest()
            self._count_unread()

    def _receive(self, datagram: bytes, source: Source) -> None:
        """Answer a datagram at once, or start the task that will."""
        request = read_request(datagram)
        if request is None:
            return
        limit = request.udp_limit if isinstance(request, Query) else UDP_LIMIT
        reply = self.answers.now(request, "udp", limit)
        if reply is not None:
            self._send(reply, source)
        elif not isinstance(request, Unanswerable):
            if self.answers.budget.take():
                self.share.charge(FORWARD_SECONDS)
                self.in_flight.start_soon(self._answer_later, datagram, request, source)
            else:
                self._send(self.answers.refuse(request, "udp"), source)

    async def _answer_later(self, datagram: bytes, request: Query | OtherOperation, source: Source) -> None:
        try:
            limit = request.udp_limit if isinstance(request, Query) else UDP_LIMIT
            reply = await self.answers.later(datagram, request, "udp", Via.UDP, limit)
        finally:
            self.answers.budget.give_back()
        self._send(cut_to(reply, limit), source)

    def _send(self, reply: bytes, destination: Source) -> None:
        """Send a datagram if it can be sent now: a client asks again for one that is lost."""
        try:
            self.sock.sendto(reply, destination)
        except OSError as error:
            log.debug("send: %s", error)

    def _count_unread(self) -> None:
        """Count what the kernel has dropped since the last look."""
        try:
            dropped = _MEMINFO.unpack(self.sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, _MEMINFO.size))[-1]
        except OSError as error:
            if error.errno != errno.ENOPROTOOPT:
                raise
            return
        if dropped != self._dropped:
            self.metrics.dns_unread((dropped - self._dropped) & 0xFFFFFFFF)
            self._dropped = dropped
