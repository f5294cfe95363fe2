"""A stand-in for istiod's certificate service, with what can go wrong with one on request.

`CertificateService` answers CreateCertificate as istiod's CA does (istio `security/pkg/server/ca`): the
bearer token is checked, impersonation needs the `clusterid` header, the key of the request is certified for
the identity asked for, and the answer is the leaf, the intermediates one by one, and the roots as one last
element.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import trio
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from ztunnel_trio.control import grpc
from ztunnel_trio.facts.grpc import GrpcCode
from ztunnel_trio.lab.pki import BACKDATED_SECONDS, Authority
from ztunnel_trio.pb.messages.istio.v1.auth import IstioCertificateRequest, IstioCertificateResponse
from ztunnel_trio.supervise.watch import Watch

CA_PATH: Final = "/istio.v1.auth.IstioCertificateService/CreateCertificate"
LONGEST_LIFETIME_SECONDS: Final = 90 * 86400  # istiod: MAX_WORKLOAD_CERT_TTL
DEFAULT_LIFETIME_SECONDS: Final = 86400


@dataclass(frozen=True, slots=True)
class Status:
    """A gRPC status to answer with."""

    code: GrpcCode
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaCall:
    """One certificate request as it arrived, and the certificate given, if one was."""

    at: float
    identity: str | None
    csr: x509.CertificateSigningRequest
    lifetime: int
    metadata: Mapping[str, str]
    peer: str
    leaf_pem: str | None


@dataclass(slots=True, eq=False)
class CertificateService:
    """The CA and its knobs. `authority` signs; `roots` are what callers are told to trust."""

    authority: Authority
    token: str | None = None
    lifetime: float | None = None  # instead of the one asked for
    backdated: float = BACKDATED_SECONDS
    delay: float = 0.0
    refuse: Status | None = None
    refuse_for: dict[str, Status] = field(default_factory=dict)  # by identity
    lifetime_for: dict[str, float] = field(default_factory=dict)
    hang: bool = False
    identity_instead: str | None = None  # the wrong identity in every certificate
    roots: list[str] | None = None  # PEM, instead of the authority's own root
    alter: Callable[[list[str]], list[str]] | None = None  # the last word about a chain
    calls: list[CaCall] = field(default_factory=list)
    changed: Watch[int] = field(default_factory=lambda: Watch(0))

    def count(self, identity: str) -> int:
        """How many requests there were for an identity."""
        return sum(call.identity == identity for call in self.calls)

    async def serve(self, call: grpc.ServerCall) -> None:
        """Answer one CreateCertificate.

        Raises:
            BadStatus: as istiod would, or as told.
        """
        raw = await call.receive()
        request = IstioCertificateRequest().parse(raw or b"")
        csr = x509.load_pem_x509_csr(request.csr.encode())
        identity = _impersonated(request)
        leaf: str | None = None
        try:
            await trio.sleep(self.delay)
            while self.hang:
                await self.changed.newer_than(self.changed.version)
            self._admit(call, request, identity)
            leaf = self._sign(csr, request, identity)
        finally:
            self.calls.append(
                CaCall(
                    at=trio.current_time(),
                    identity=identity,
                    csr=csr,
                    lifetime=request.validity_duration,
                    metadata=call.metadata,
                    peer=call.peer,
                    leaf_pem=leaf,
                )
            )
            self.changed.publish(len(self.calls))
        roots = self.roots if self.roots is not None else [self.authority.root_pem]
        chain = [leaf, *self.authority.intermediates_pem, "".join(roots)]
        await call.send(
            bytes(IstioCertificateResponse(cert_chain=self.alter(chain) if self.alter else chain))
        )

    def release(self) -> None:
        """End `hang` for those who wait."""
        self.hang = False
        self.changed.publish(len(self.calls))

    def _admit(self, call: grpc.ServerCall, request: IstioCertificateRequest, identity: str | None) -> None:
        check_token(call, self.token)
        if identity is not None and "clusterid" not in call.metadata:
            raise bad_status(Status(GrpcCode.UNAUTHENTICATED, "request impersonation authentication failure"))
        if request.validity_duration > LONGEST_LIFETIME_SECONDS:
            raise bad_status(
                Status(GrpcCode.INVALID_ARGUMENT, "CSR signing error (requested TTL is too long)")
            )
        if refused := self.refuse_for.get(identity or "") or self.refuse:
            raise bad_status(refused)

    def _sign(
        self, csr: x509.CertificateSigningRequest, request: IstioCertificateRequest, identity: str | None
    ) -> str:
        key = csr.public_key()
        if not csr.is_signature_valid or not isinstance(key, ec.EllipticCurvePublicKey):
            raise bad_status(Status(GrpcCode.INVALID_ARGUMENT, "CSR signing error (bad CSR)"))
        chosen = (
            self.lifetime_for.get(identity or "")
            or self.lifetime
            or request.validity_duration
            or DEFAULT_LIFETIME_SECONDS
        )
        name = self.identity_instead or identity
        return self.authority.sign(
            key, [] if name is None else [name], lifetime=chosen, backdated=self.backdated
        )


def check_token(call: grpc.ServerCall, token: str | None) -> None:
    """Let a call pass that carries the bearer token; None lets all pass.

    Raises:
        BadStatus: Unauthenticated, in istiod's words.
    """
    if token is not None and call.metadata.get("authorization") != f"Bearer {token}":
        raise bad_status(Status(GrpcCode.UNAUTHENTICATED, "request authenticate failure"))


def bad_status(status: Status) -> grpc.BadStatus:
    """The exception that makes `control.grpc.serve` answer with a status."""
    return grpc.BadStatus(status.code, status.text)


def _impersonated(request: IstioCertificateRequest) -> str | None:
    if request.metadata is None or "ImpersonatedIdentity" not in request.metadata.fields:
        return None
    return request.metadata.fields["ImpersonatedIdentity"].string_value
