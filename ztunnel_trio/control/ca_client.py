"""Certificates from istiod's CA: one call a certificate, over a connection of its own.

Each call reads the token and the root file as they are then, so rotated ones are in use at once. A
connection that ends under the call (istiod's maximum connection age) is tried once more.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import trio

from ztunnel_trio.control.credentials import Caller, load_roots
from ztunnel_trio.control.grpc import (
    DEFAULT_SETTINGS,
    ChannelSettings,
    ConnectionEnded,
    GrpcFailed,
    Target,
    open_channel,
)
from ztunnel_trio.errors import Unavailable
from ztunnel_trio.facts import defaults
from ztunnel_trio.facts.grpc import GrpcCode
from ztunnel_trio.model.identity import SpiffeId
from ztunnel_trio.model.source import RootSource
from ztunnel_trio.pb.messages.google.protobuf import Struct, Value
from ztunnel_trio.pb.messages.istio.v1.auth import IstioCertificateRequest, IstioCertificateResponse

log = logging.getLogger("ztunnel::identity::caclient")

CREATE_CERTIFICATE_PATH: Final = "/istio.v1.auth.IstioCertificateService/CreateCertificate"
IMPERSONATED_IDENTITY: Final = "ImpersonatedIdentity"  # istio security/pkg/server/ca/server.go


@dataclass(frozen=True, slots=True, kw_only=True)
class CaSettings:
    """How to ask the CA."""

    lifetime_seconds: int = defaults.CERTIFICATE_SECONDS
    """SECRET_TTL."""
    impersonate: bool = True
    """Shared mode: the certificate is for a workload of this node; else it is for ourselves."""
    deadline_seconds: float = 30.0
    """Of one fetch, connection included. The reference sets none; a silent CA would hold a slot for ever."""
    channel: ChannelSettings = DEFAULT_SETTINGS


class CaClient:
    """Asks istiod, or what speaks like it, to sign."""

    def __init__(
        self, target: Target, roots: RootSource, caller: Caller, settings: CaSettings | None = None
    ) -> None:
        self._target = target
        self._roots = roots
        self._caller = caller
        self._settings = settings or CaSettings()

    async def sign(self, identity: SpiffeId, csr_pem: str) -> Sequence[str]:
        """Have a signing request signed; returns the CA's chain, PEM texts, the leaf first.

        Raises:
            Unavailable: `signing gRPC error (...)`.
        """
        message = bytes(
            IstioCertificateRequest(
                csr=csr_pem,
                validity_duration=self._settings.lifetime_seconds,
                metadata=_impersonation(identity) if self._settings.impersonate else None,
            )
        )
        try:
            with trio.fail_after(self._settings.deadline_seconds):
                answer = await self._call_again(message)
        except trio.TooSlowError as error:
            text = signing_error(GrpcCode.DEADLINE_EXCEEDED, "Timeout expired")
            raise Unavailable(text) from error
        except GrpcFailed as error:
            raise Unavailable(signing_error(error.code, _message(error))) from error
        except Unavailable as error:  # of our own credentials
            raise Unavailable(signing_error(GrpcCode.UNKNOWN, str(error))) from error
        return _decode(answer)

    async def _call_again(self, message: bytes) -> bytes:
        try:
            return await self._call(message)
        except ConnectionEnded as error:
            log.debug("certificate request: %s, once more", error)
        return await self._call(message)

    async def _call(self, message: bytes) -> bytes:
        metadata = await self._caller.metadata()
        roots = await load_roots(self._roots)
        async with open_channel(self._target, roots, self._settings.channel) as channel:
            return await channel.call(CREATE_CERTIFICATE_PATH, message, metadata)


def signing_error(code: GrpcCode, message: str) -> str:
    """A failed call as operators know it (ztunnel src/identity/manager.rs, `Error::SigningError`)."""
    return f"signing gRPC error ({code.sentence}): {message}"


def _message(error: GrpcFailed) -> str:
    return f"{error.message}: {error.source}" if error.source else error.message


def _impersonation(identity: SpiffeId) -> Struct:
    return Struct(fields={IMPERSONATED_IDENTITY: Value(string_value=str(identity))})


def _decode(answer: bytes) -> Sequence[str]:
    try:
        chain = IstioCertificateResponse.parse(answer).cert_chain
    except (ValueError, EOFError) as error:
        raise Unavailable(
            signing_error(GrpcCode.INTERNAL, f"failed to decode the answer: {error}")
        ) from error
    if not all(isinstance(element, str) for element in chain):  # another wire type is not refused
        raise Unavailable(signing_error(GrpcCode.INTERNAL, "failed to decode the answer: not text"))
    return chain


__all__ = ["CREATE_CERTIFICATE_PATH", "CaClient", "CaSettings", "signing_error"]
