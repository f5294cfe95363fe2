"""The stream task: mesh state from istiod over delta xDS, applied, answered, and asked for more.

Theory of operation. `run()` makes one attempt after the other for the life of the process, under the
supervisor; `wire.ads` says what to send. A response is read in pieces, applied (`control.apply`), and
answered when the mesh has all of it. While a response is applied nothing more is read: flow control holds
istiod back. The mesh outlives every stream.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Final, Protocol

import trio

from ztunnel_trio.control.apply import Application, count_payload
from ztunnel_trio.control.credentials import Caller, load_roots
from ztunnel_trio.control.grpc import (
    DEFAULT_SETTINGS,
    WINDOW_BYTES,
    CallStream,
    ChannelSettings,
    GrpcFailed,
    Target,
    open_channel,
)
from ztunnel_trio.errors import PeerBrokeProtocol, Unavailable
from ztunnel_trio.facts.network import ADDRESS_TYPE, AUTHORIZATION_TYPE
from ztunnel_trio.live_mesh import LiveMesh
from ztunnel_trio.model.source import RootSource
from ztunnel_trio.observe.log import span
from ztunnel_trio.supervise.keep_running import Again, Failed, Part, RunEnd, Supervisor
from ztunnel_trio.supervise.pace import Pace, nothing_moves
from ztunnel_trio.wire.ads import (
    DELTA_PATH,
    Arrived,
    Discovery,
    NodeFacts,
    Subscription,
)
from ztunnel_trio.wire.delta_response import DiscoveryResponse, ResponseSplitter
from ztunnel_trio.wire.rejection import Rejections
from ztunnel_trio.wire.stream_end import (
    FAILING,
    CompleteEnd,
    EndReason,
    Judged,
    OtherEnd,
    StatusEnd,
    StreamEnd,
    judge,
)

log = logging.getLogger("ztunnel::xds::client")

DISCOVERY: Final = Part(kind="discovery", backoff=FAILING, healthy_seconds=inf, log=log)

_SMALL_BYTES: Final = 64 * 1024  # a message that is read without a rest, lest many of them cannot keep up
_SHORT_PIECE_BYTES: Final = 16 * 1024  # while something moves; decrypted, parsed and cut in 0.1 ms


class XdsMetrics(Protocol):
    """What is counted of the stream."""

    def xds_termination(self, reason: str) -> None:
        """One attempt has ended."""

    def xds_message(self, url: str, size: int) -> None:
        """One response of a type was received, with that many bytes of payload."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdsSettings:
    """How to speak with istiod."""

    on_demand: bool = False
    """XDS_ON_DEMAND: addresses only when a connection needs them."""
    demand_seconds: float = 10.0
    """How long a demand may take. The reference waits without limit."""
    channel: ChannelSettings = DEFAULT_SETTINGS


@dataclass(slots=True, eq=False)
class _Question:
    """A name asked for on demand, and how many wait for the answer."""

    answered: trio.Event = field(default_factory=trio.Event)
    askers: int = 0


class AdsClient:
    """The one discovery stream of this process. See the module's text."""

    def __init__(
        self,
        live: LiveMesh,
        target: Target,
        roots: RootSource,
        caller: Caller,
        node: NodeFacts,
        *,
        metrics: XdsMetrics,
        settings: AdsSettings | None = None,
        supervisor: Supervisor | None = None,
        on_ready: Callable[[], None] = lambda: None,
        activity: Callable[[], int] = nothing_moves,
    ) -> None:
        self._live = live
        self._target = target
        self._roots = roots
        self._caller = caller
        self._metrics = metrics
        self._settings = settings or AdsSettings()
        self._on_ready = on_ready
        self._supervisor = supervisor or Supervisor()
        self._core = Discovery(
            node.as_node(),
            [
                Subscription(ADDRESS_TYPE, on_demand=self._settings.on_demand),
                Subscription(AUTHORIZATION_TYPE),
            ],
        )
        self._attempts = 0
        self._pace = Pace(activity)
        self._application = Application(
            live,
            self._core,
            self._pace,
            on_demand=self._settings.on_demand,
            on_arrival=self._answer_unsent,
        )
        self._questions: dict[str, _Question] = {}  # as many as connections wait for one, at most
        self._unsent: dict[str, None] = {}
        self._something_unsent = trio.Event()

    async def run(self) -> None:
        """Keep a stream open until cancelled, inside `grpc.open_control_loop()`."""
        await self._supervisor.keep_running(DISCOVERY, self._run_once)

    async def _run_once(self) -> RunEnd:
        self._attempts += 1
        with span("xds", id=self._attempts):
            judged = judge(await self._attempt(), str(self._target))
            self._metrics.xds_termination(judged.reason.value)
            level = logging.DEBUG if judged.reason is EndReason.RECONNECT else logging.WARNING
            tell = partial(self._tell, judged, level, self._attempts)
            if judged.pause_seconds is None:
                return Failed(tell)
            tell(judged.pause_seconds)
            return Again(judged.pause_seconds)

    def _tell(self, judged: Judged, level: int, attempt: int, seconds: float) -> None:
        with span("xds", id=attempt):
            log.log(level, "%s", judged.told(seconds))

    async def demand(self, name: str) -> None:
        """Ask istiod for an address (`network/ip`, uid or `namespace/hostname`); returns when it has
        answered, whatever it said, or when it takes too long. The mesh then has what there is.

        Several who ask for one name share the question.
        """
        question = self._questions.get(name)
        if question is None:
            question = self._questions[name] = _Question()
            self._unsent[name] = None
            self._something_unsent.set()
        question.askers += 1
        try:
            with trio.move_on_after(self._settings.demand_seconds) as limit:
                await question.answered.wait()
        finally:
            question.askers -= 1
            if not question.askers and self._questions.get(name) is question:
                del self._questions[name]
                self._unsent.pop(name, None)
        if limit.cancelled_caught:
            log.warning("on demand request for %s was not answered in time", name)

    async def _attempt(self) -> StreamEnd:
        """One stream, from connecting to its end."""
        try:
            metadata = await self._caller.metadata()
            roots = await load_roots(self._roots)
            async with open_channel(self._target, roots, self._settings.channel) as channel:
                stream = await channel.open_stream(DELTA_PATH, metadata)
                for request in self._core.open_stream():
                    if request is None:
                        await trio.lowlevel.checkpoint()
                    else:
                        await stream.send(request)
                await self._talk(stream)
        except Unavailable as error:
            return OtherEnd(str(error))
        except PeerBrokeProtocol as error:
            return OtherEnd(str(error))
        except GrpcFailed as error:
            return StatusEnd(error.code, error.message, answered=error.answered, source=error.source)
        return CompleteEnd()

    async def _talk(self, stream: CallStream) -> None:
        """Receive and answer until istiod ends the stream; demands go out in between."""
        await stream.wait_answered()
        log.info("Stream established")
        failures: list[GrpcFailed] = []
        ended: GrpcFailed | PeerBrokeProtocol | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send_demands, stream, failures, nursery.cancel_scope)
            try:
                while (size := await stream.begin_message()) is not None:
                    await self._take(stream, await self._read_response(stream, size))
            except (GrpcFailed, PeerBrokeProtocol) as error:
                ended = error
            nursery.cancel_scope.cancel(reason="stream ended")
        if failures:
            raise failures[0]
        if ended is not None:
            raise ended

    async def _send_demands(
        self, stream: CallStream, failures: list[GrpcFailed], whole: trio.CancelScope
    ) -> None:
        while True:
            now = trio.current_time()
            try:
                for request in self._core.forget(now):
                    await stream.send(request)
                if self._unsent:
                    name = next(iter(self._unsent))
                    del self._unsent[name]
                    log.info("received on demand request %s/%s", ADDRESS_TYPE, name)
                    await stream.send(self._core.demand(ADDRESS_TYPE, name, now))
                    continue
            except GrpcFailed as error:
                failures.append(error)
                whole.cancel(reason="stream ended")
                return
            self._something_unsent = trio.Event()
            moment = self._core.next_forgetting()
            with trio.move_on_at(math.inf if moment is None else moment):
                await self._something_unsent.wait()

    async def _read_response(self, stream: CallStream, size: int) -> DiscoveryResponse:
        splitter = ResponseSplitter(size)
        if size <= _SMALL_BYTES:
            while piece := await stream.piece():
                splitter.feed(piece)
            return splitter.finish()
        while piece := await stream.piece(_SHORT_PIECE_BYTES if self._pace.is_busy else WINDOW_BYTES):
            await self._pace.rest()  # what arrives and what is cut hold the loop apart
            splitter.feed(piece)
            await self._pace.rest()
        return splitter.finish()

    async def _take(self, stream: CallStream, response: DiscoveryResponse) -> None:
        """Apply one response, then answer it."""
        counts = {"size": response.resources.count, "removes": len(response.removed)}
        log.debug("received response", extra={"fields": {"type_url": response.type_url, **counts}})
        rejections = Rejections()
        if self._core.handles(response.type_url):
            received_bytes = await self._application.apply(response, rejections)
        else:
            log.error("unknown type: %s", response.type_url)
            received_bytes = await count_payload(response)
        self._metrics.xds_message(response.type_url, received_bytes)
        finished = self._core.finish(response, rejections)
        for name in finished.answered:
            self._answer(name)
        if self._settings.on_demand:
            self._something_unsent.set()  # what stands for nothing now is to be forgotten at some time
        said = {"type_url": response.type_url, "nonce": response.nonce}
        if finished.error is None:
            log.debug("sending response", extra={"fields": {**said, "type": "ACK"}})
        else:
            told = {**said, "type": "NACK", "error": finished.error}
            if rejections.fields:
                told["refused_fields"] = rejections.fields
            log.error("sending response", extra={"fields": told})
        if finished.became_ready:
            self._on_ready()
        await stream.send(finished.request)

    def _answer_unsent(self, resources: Sequence[Arrived]) -> None:
        """What came although the question was not sent yet needs no asking: istiod may answer it nothing."""
        if not self._unsent:
            return
        for one in resources:
            for found in (one.name, *one.aliases):
                if found in self._unsent:
                    self._answer(found)

    def _answer(self, name: str) -> None:
        question = self._questions.pop(name, None)
        if question is not None:
            self._unsent.pop(name, None)
            question.answered.set()
