"""The certificate with which the proxy proves itself to the Broker API, and the channel that it secures.

The certificate comes from the Workload API, whose agent attests this process. Each connection to the broker
is made with the newest one; those that are open live on. The broker proves itself by a SPIFFE id of the same
trust domain under its bundle.
"""

import logging
import ssl
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, NoReturn

import trio
from cryptography import x509

from ztunnel_trio.control import grpc
from ztunnel_trio.control.grpc import Channel, ChannelSettings, NotConnected, NotTrusted, Security
from ztunnel_trio.control.spiffe.link import AgentLink
from ztunnel_trio.control.spiffe.workload_api import follow_own
from ztunnel_trio.errors import PeerBrokeProtocol, Unavailable
from ztunnel_trio.model.backoff import Backoff
from ztunnel_trio.model.certificate import WorkloadCertificate, uri_names
from ztunnel_trio.model.identity import SCHEME, SpiffeId
from ztunnel_trio.model.socket_target import SocketTarget
from ztunnel_trio.model.svid import SvidState, choose
from ztunnel_trio.supervise.keep_running import Failed, Part, RunEnd, Supervisor
from ztunnel_trio.supervise.watch import Watch

log = logging.getLogger("ztunnel::identity::spire")

FIRST_SECONDS: Final = 30.0
"""How long a connection to the broker waits for our own first certificate."""
BACKOFF: Final = Backoff(first_seconds=1.0, limit_seconds=30.0, jitter=0.2)

MakeContext = Callable[[WorkloadCertificate], ssl.SSLContext]
"""A client's context that presents a certificate and trusts its roots (`net.tls`)."""


class OwnIdentity:
    """Our own certificate, followed. `run` serves it."""

    def __init__(self, link: AgentLink, identity: SpiffeId, supervisor: Supervisor) -> None:
        self._link = link
        self._identity = identity
        self._supervisor = supervisor
        self._newest: Watch[WorkloadCertificate | Unavailable | None] = Watch(None)

    async def run(self) -> NoReturn:
        """Follow the Workload API until cancelled."""
        part = Part(kind="own certificate", backoff=BACKOFF, log=log)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._link.run)
            await self._supervisor.keep_running(part, self._follow)
        raise AssertionError("unreachable")

    async def certificate(self) -> WorkloadCertificate:
        """The newest one, waiting a while for the Workload API's first answer.

        Raises:
            Unavailable: none has come so far, and why.
        """
        with trio.move_on_after(FIRST_SECONDS):
            while self._newest.value is None:
                await self._newest.newer_than(self._newest.version)
        match self._newest.value:
            case WorkloadCertificate() as certificate:
                return certificate
            case Unavailable() as error:
                raise Unavailable(f"own certificate {self._identity}: {error}") from error
            case None:
                raise Unavailable(f"own certificate {self._identity}: no answer from the Workload API")

    async def _follow(self) -> RunEnd:
        error = Unavailable("the agent ended the stream")
        before = self._newest.version
        try:
            await follow_own(self._link, self._take)
        except Unavailable as failure:
            error = failure
            self._lack(failure)
        return Failed(partial(_tell, error), is_first=self._newest.version != before)

    def _take(self, state: SvidState) -> None:
        try:
            self._newest.publish(choose(state, self._identity))
        except PeerBrokeProtocol as error:
            log.warning("own certificate: %s", error)
            self._lack(Unavailable(str(error)))

    def _lack(self, error: Unavailable) -> None:
        """Say why there is none; one that came before stays in use."""
        if not isinstance(self._newest.value, WorkloadCertificate):
            self._newest.publish(error)


@asynccontextmanager
async def open_broker(
    target: SocketTarget, own: OwnIdentity, make_context: MakeContext, settings: ChannelSettings
) -> AsyncGenerator[Channel, None]:
    """Connect to a broker for the body's time, by mutual TLS.

    Raises:
        NotConnected: as `control.grpc.open_channel`, or we have no certificate to show.
    """
    try:
        certificate = await own.certificate()
        context = make_context(certificate)
    except Unavailable as error:
        raise NotConnected(str(error)) from error
    check = partial(check_broker, certificate.identity.trust_domain)
    security = Security(context, "localhost", check)
    async with grpc.open_agent_channel(target, security, settings) as channel:
        yield channel


def check_broker(trust_domain: str, tls: ssl.SSLObject) -> None:
    """Hold a broker, whose certificate has been verified, to a SPIFFE id of a trust domain.

    Raises:
        NotTrusted: it has none.
    """
    der = tls.getpeercert(binary_form=True)
    names = uri_names(x509.load_der_x509_certificate(der)) if der else ()
    if not any(name.startswith(f"{SCHEME}{trust_domain}/") for name in names):
        given = ", ".join(names) or "no name"
        raise NotTrusted(f"invalid broker certificate: {given} is not of trust domain {trust_domain}")


def _tell(error: Unavailable, seconds: float) -> None:
    log.warning("own certificate: %s; will retry in %.3fs", error, seconds)
