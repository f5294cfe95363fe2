"""Which server to talk to, whom to trust for it, and with which limits."""

from dataclasses import dataclass
from typing import Final

from ztunnel_trio.model.source import SystemRoots

MESSAGE_LIMIT_BYTES: Final = 200 * 1024 * 1024  # ztunnel xds/client.rs: istiod sends the mesh in one message


@dataclass(frozen=True, slots=True)
class PemRoots:
    """Trust the certificates of a PEM text; those that cannot be used are skipped."""

    certificates_der: tuple[bytes, ...]


Roots = SystemRoots | PemRoots


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a server is and how it proves itself. There is no way not to verify it.

    `alternative_name` is accepted where the certificate does not name `host` (ztunnel src/tls/control.rs);
    the server is asked for by `host` in any case.
    """

    host: str
    port: int
    alternative_name: str | None = None

    def __str__(self) -> str:
        return (
            f"https://[{self.host}]:{self.port}" if ":" in self.host else f"https://{self.host}:{self.port}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelSettings:
    """Timeouts and limits of one connection to the control plane."""

    connect_seconds: float = 5.0
    """Name, TCP: ztunnel src/tls/control.rs."""
    handshake_seconds: float = 10.0
    """TLS; the reference has no limit, a peer that accepts and is silent would hold us for ever."""
    tcp_keepalive: tuple[int, int, int] = (300, 75, 9)
    """Idle seconds, interval seconds, probes: ztunnel src/tls/control.rs."""
    ping_seconds: float = 30.0
    """HTTP/2 PING while a stream is open; istiod tolerates one every 15 s."""
    ping_timeout_seconds: float = 10.0
    shutdown_seconds: float = 0.5
    """How long a TLS goodbye may take; it adds to `ping_timeout_seconds` for a peer that is gone."""
    message_limit_bytes: int = MESSAGE_LIMIT_BYTES
    tls12: bool = False
    """Allow TLS 1.2 beside 1.3."""


DEFAULT_SETTINGS: Final = ChannelSettings()
