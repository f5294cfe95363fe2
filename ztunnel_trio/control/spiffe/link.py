"""Connections to an agent for all streams: one, and another when that one has as many as a server may allow.

A connection is made when the first stream wants it and closed when no stream is left on it. An attempt that
fails is told to all who wait for it; the next who asks makes a new one. Waiting between attempts is the
business of those who ask: each has a back-off of its own.
"""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Final, NoReturn

import trio

from ztunnel_trio.control.grpc import CallStream, Channel, ConnectionEnded, GrpcFailed
from ztunnel_trio.errors import PeerBrokeProtocol, Unavailable

STREAMS_A_CONNECTION: Final = 100
"""What servers let at least be open at a time (RFC 9113 6.5.2); one more would wait for ever."""


@dataclass(slots=True, eq=False)
class _Attempt:
    """One connection, wanted by somebody: what became of it, and how many streams are on it."""

    streams: int = 0
    settled: trio.Event = field(default_factory=trio.Event)
    over: trio.Event = field(default_factory=trio.Event)  # lost, or not needed any more
    channel: Channel | None = None
    failure: GrpcFailed | None = None


class AgentLink:
    """The connections. `open_channel` makes one; `run` is their owner's task."""

    def __init__(
        self,
        open_channel: Callable[[], AbstractAsyncContextManager[Channel]],
        metadata: Mapping[str, str],
    ) -> None:
        self._open_channel = open_channel
        self._metadata = dict(metadata)
        self._attempts: list[_Attempt] = []
        self._nursery: trio.Nursery | None = None

    async def run(self) -> NoReturn:
        """Keep the connections that streams want until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                for attempt in self._attempts:
                    nursery.start_soon(self._connect, attempt)
                await trio.sleep_forever()
            finally:
                self._nursery = None
        raise AssertionError("unreachable")

    async def follow(self, path: str, request: bytes, deliver: Callable[[bytes], Awaitable[None]]) -> None:
        """Ask once and pass on every message of the answer; returns when the agent ends it with OK.

        Raises:
            Unavailable: no connection, an error status (code and message), the connection lost, or
                `deliver` found that the agent broke its protocol.
        """
        attempt = self._with_room()
        attempt.streams += 1
        try:
            await attempt.settled.wait()
            if attempt.channel is None:
                assert attempt.failure is not None
                raise attempt.failure
            call = await attempt.channel.open_stream(path, self._metadata)
            await self._exchange(call, request, deliver)
        except ConnectionEnded as error:
            attempt.over.set()
            raise Unavailable(str(error)) from error
        except (GrpcFailed, PeerBrokeProtocol) as error:
            raise Unavailable(str(error)) from error
        finally:
            attempt.streams -= 1
            if not attempt.streams:
                attempt.over.set()

    def _with_room(self) -> _Attempt:
        """A connection that takes one more stream, made if there is none."""
        for attempt in self._attempts:
            if attempt.streams < STREAMS_A_CONNECTION and not attempt.over.is_set():
                return attempt
        attempt = _Attempt()
        self._attempts.append(attempt)
        if self._nursery is not None:
            self._nursery.start_soon(self._connect, attempt)
        return attempt

    async def _connect(self, attempt: _Attempt) -> None:
        try:
            async with self._open_channel() as channel:
                attempt.channel = channel
                attempt.settled.set()
                await attempt.over.wait()
        except GrpcFailed as error:
            attempt.failure = error
        finally:
            self._attempts.remove(attempt)
            attempt.settled.set()

    async def _exchange(
        self, call: CallStream, request: bytes, deliver: Callable[[bytes], Awaitable[None]]
    ) -> None:
        try:
            await call.send(request, last=True)
            while (message := await call.receive()) is not None:
                await deliver(message)
        finally:
            call.close()
