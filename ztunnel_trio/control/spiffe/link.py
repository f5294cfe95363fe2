"""One connection to an agent for all streams, opened when the first one wants it, again after it was lost.

An attempt that fails is told to all who wait for it; the next who asks makes a new one. Waiting between
attempts is the business of those who ask: each has a back-off of its own.
"""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import NoReturn

import trio

from ztunnel_trio.control.grpc import CallStream, Channel, ConnectionEnded, GrpcFailed
from ztunnel_trio.errors import PeerBrokeProtocol, Unavailable


@dataclass(slots=True, eq=False)
class _Attempt:
    """One connection, wanted by somebody: what became of it."""

    settled: trio.Event = field(default_factory=trio.Event)
    lost: trio.Event = field(default_factory=trio.Event)
    channel: Channel | None = None
    failure: GrpcFailed | None = None


class AgentLink:
    """The connection. `open_channel` makes one; `run` is its owner's task."""

    def __init__(
        self,
        open_channel: Callable[[], AbstractAsyncContextManager[Channel]],
        metadata: Mapping[str, str],
    ) -> None:
        self._open_channel = open_channel
        self._metadata = dict(metadata)
        self._attempt = _Attempt()
        self._wanted = trio.Event()

    async def run(self) -> NoReturn:
        """Connect whenever somebody wants a stream and there is no connection, until cancelled."""
        while True:
            await self._wanted.wait()
            attempt = self._attempt
            try:
                async with self._open_channel() as channel:
                    attempt.channel = channel
                    attempt.settled.set()
                    await attempt.lost.wait()
            except GrpcFailed as error:
                attempt.failure = error
            finally:
                self._attempt, self._wanted = _Attempt(), trio.Event()
                attempt.settled.set()

    async def follow(self, path: str, request: bytes, deliver: Callable[[bytes], Awaitable[None]]) -> None:
        """Ask once and pass on every message of the answer; returns when the agent ends it with OK.

        Raises:
            Unavailable: no connection, an error status (code and message), the connection lost, or
                `deliver` found that the agent broke its protocol.
        """
        attempt = self._attempt
        self._wanted.set()
        await attempt.settled.wait()
        try:
            if attempt.channel is None:
                assert attempt.failure is not None
                raise attempt.failure
            call = await attempt.channel.open_stream(path, self._metadata)
            await self._exchange(call, request, deliver)
        except ConnectionEnded as error:
            attempt.lost.set()
            raise Unavailable(str(error)) from error
        except (GrpcFailed, PeerBrokeProtocol) as error:
            raise Unavailable(str(error)) from error

    async def _exchange(
        self, call: CallStream, request: bytes, deliver: Callable[[bytes], Awaitable[None]]
    ) -> None:
        try:
            await call.send(request, last=True)
            while (message := await call.receive()) is not None:
                await deliver(message)
        finally:
            call.close()
