"""An inbound connection from its first judgement to its access line."""

import socket
from dataclasses import dataclass

import trio

from ztunnel_trio.model.address import IPAddress, SocketAddress
from ztunnel_trio.model.refusal import Reason, Refusal
from ztunnel_trio.net.pair import Pair
from ztunnel_trio.net.sockets import SocketFactory
from ztunnel_trio.observe.access_log import ConnectionRecord
from ztunnel_trio.proxy.registry import Hold, InboundKey, Registry
from ztunnel_trio.proxy.serving import ended_by


@dataclass(slots=True, eq=False)
class Held:
    """Listed in the registry from `begin` to `finish`, which may end it at any time in between.

    What an idle connection keeps, so nothing is in here that only its beginning needs. `siblings` are the
    holds of the same tunnel, where somebody wants to know them.
    """

    registry: Registry
    key: InboundKey
    hold: Hold
    record: ConnectionRecord
    siblings: set[Hold] | None = None
    pair: Pair | None = None  # once both ends are there

    def begin(self) -> None:
        """From here on the registry may end it."""
        self.registry.add(self.key, self.hold)
        if self.siblings is not None:
            self.siblings.add(self.hold)

    def finish(self, outcome: Refusal | None) -> None:
        """Leave the access line: why it was ended from outside, or else what came of it."""
        self.record.finish(self.hold.refusal or outcome)
        self.registry.remove(self.key, self.hold)
        if self.siblings is not None:
            self.siblings.discard(self.hold)

    async def dial(
        self, sockets: SocketFactory, destination: SocketAddress, source: IPAddress | None, seconds: float
    ) -> socket.socket | None:
        """Connect to the application; None if the registry ended the connection meanwhile.

        Raises:
            OSError: as the kernel gave it.
            trio.TooSlowError: not within so many seconds.
        """
        sock, is_connected = sockets.connect_nowait(destination, source)
        if is_connected:
            return sock
        with trio.CancelScope() as scope:
            self.hold.body = scope
            with trio.fail_after(seconds):
                await sockets.finish_connecting(sock)
        self.hold.body = None
        if self.hold.refusal is None:
            return sock
        sock.close()
        return None

    async def carry(self) -> None:
        """Relay until it is over, and finish."""
        pair = self.pair
        assert pair is not None
        self.hold.body = pair
        try:
            trouble = await pair.run()
        except BaseException as error:
            self.finish(ended_by(error))
            raise
        self.finish(None if trouble is None else Refusal(Reason.RELAY, trouble))
