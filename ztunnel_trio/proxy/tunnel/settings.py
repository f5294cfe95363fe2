"""Windows and limits of a tunnel."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ztunnel_trio.facts import defaults
from ztunnel_trio.wire.http2.budgets import ALLOWANCES, Allowance, Excess
from ztunnel_trio.wire.http2.settings import Http2Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelSettings:
    """Defaults of the reference (ztunnel src/config.rs, src/proxy/h2.rs)."""

    stream_window: int = defaults.STREAM_WINDOW
    connection_window: int = defaults.CONNECTION_WINDOW
    frame_size: int = defaults.FRAME_SIZE
    client_header_list_size: int = 16_384
    server_header_list_size: int = 65_536
    max_streams: int = 200
    assumed_peer_streams: int = defaults.STREAMS_PER_TUNNEL  # until the peer's SETTINGS say
    ping_interval_seconds: float = 10.0
    ping_timeout_seconds: float = 20.0
    doubt_seconds: float = 1.0  # a CONNECT unanswered for so long has the peer asked whether it lives
    proof_seconds: float = 2.0  # and for so long it has to say anything at all
    goodbye_seconds: float = 1.0  # how long a closed tunnel waits for the peer to close, too
    allowances: Mapping[Excess, Allowance] = field(default_factory=lambda: ALLOWANCES)

    def http2(self, *, is_client: bool) -> Http2Settings:
        """What one end announces."""
        return Http2Settings(
            is_client=is_client,
            stream_window=self.stream_window,
            connection_window=self.connection_window,
            frame_size=self.frame_size,
            header_list_size=self.client_header_list_size if is_client else self.server_header_list_size,
            max_streams=self.max_streams,
            allowances=self.allowances,
        )
