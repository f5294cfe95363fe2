"""Certificates from an authority that signs requests: a new key for each, the answer checked."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import trio

from ztunnel_trio.certs import csr
from ztunnel_trio.errors import PeerBrokeProtocol, Unavailable
from ztunnel_trio.model.certificate import WorkloadCertificate, parse_chain
from ztunnel_trio.model.certificate_key import CertificateKey
from ztunnel_trio.model.identity import SpiffeId

log = logging.getLogger("ztunnel::identity::caclient")

Sign = Callable[[SpiffeId, str], Awaitable[Sequence[str]]]
"""Has a CSR (PEM) signed: the chain as PEM texts, leaf first, root bundle last; raises `Unavailable`."""


class SignedCertificates:
    """A `certs.provider.CertificateProvider` over an authority's `sign`.

    With `check_identity` the answer must name the identity asked for (shared mode); a proxy dedicated to one
    workload takes what it is given.
    """

    def __init__(self, sign: Sign, *, check_identity: bool = True) -> None:
        self._sign = sign
        self._check_identity = check_identity

    attests_pods: Final = False

    async def fetch(self, key: CertificateKey) -> WorkloadCertificate:
        """Have a new key's certificate signed.

        Raises:
            Unavailable: what the authority said, or what is wrong with its answer.
        """
        identity = key.identity
        request = csr.make(identity)
        chain = await self._sign(identity, request.csr_pem)
        if len(chain) == 1:
            log.warning("no chain certs for: %s", identity)
        try:
            return parse_chain(identity, chain, request.key_pem, check_identity=self._check_identity)
        except PeerBrokeProtocol as error:
            log.error("%s", error)
            raise Unavailable(str(error)) from error

    async def changed(self, key: CertificateKey) -> None:
        """Wait for ever: such an authority answers when asked, it tells nothing."""
        await trio.sleep_forever()

    def close(self, key: CertificateKey) -> None:
        """Nothing is held between calls."""

    def hurry(self, key: CertificateKey) -> None:
        """The keeper's own retries are soon enough."""
