"""SPIFFE identities as Istio forms them: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`."""

from dataclasses import dataclass
from typing import Final, Self

from ztunnel_trio.errors import PeerBrokeProtocol

SCHEME: Final = "spiffe://"


@dataclass(frozen=True, slots=True, order=True)
class SpiffeId:
    """Who a workload is. Compared case-sensitively, without normalisation."""

    trust_domain: str
    namespace: str
    service_account: str

    def __str__(self) -> str:
        return f"{SCHEME}{self.trust_domain}/ns/{self.namespace}/sa/{self.service_account}"

    @property
    def principal(self) -> str:
        """The text form without its scheme, as authorization policies write it."""
        return f"{self.trust_domain}/ns/{self.namespace}/sa/{self.service_account}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the text form. Parts may be empty and hold any character but `/`.

        Raises:
            PeerBrokeProtocol: not exactly `spiffe://a/ns/b/sa/c` (istio `pkg/spiffe` ParseIdentity).
        """
        match text.removeprefix(SCHEME).split("/"):
            case [trust_domain, "ns", namespace, "sa", service_account] if text.startswith(SCHEME):
                return cls(trust_domain, namespace, service_account)
            case _:
                raise PeerBrokeProtocol(f"invalid spiffe identity: {text}")
