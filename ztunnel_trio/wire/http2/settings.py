"""What one end of an HTTP/2 connection announces."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ztunnel_trio.wire.http2.budgets import ALLOWANCES, Allowance, Excess
from ztunnel_trio.wire.http2.frames import SETTING, SETTINGS, Outgoing
from ztunnel_trio.wire.http2.windows import DEFAULT_WINDOW


@dataclass(frozen=True, slots=True, kw_only=True)
class Http2Settings:
    """Its limits, and those of its peer; defaults of the reference (ztunnel src/config.rs, src/proxy/h2)."""

    is_client: bool
    stream_window: int = 4_194_304
    connection_window: int = (
        16_777_216  # several streams' worth: one that does not read must not stop the others
    )
    frame_size: int = 1_048_576
    header_list_size: int = 65_536
    max_streams: int = 200
    allowances: Mapping[Excess, Allowance] = field(default_factory=lambda: ALLOWANCES)

    def greet(self, out: Outgoing) -> None:
        """Say preface, SETTINGS in the order of their ids, and the connection's window (RFC 9113 3.4)."""
        if self.is_client:
            out.preface()
            first = (2, 0)  # ENABLE_PUSH
        else:
            first = (3, self.max_streams)
        pairs = (first, (4, self.stream_window), (5, self.frame_size), (6, self.header_list_size))
        out.put(SETTINGS, 0, 0, b"".join([SETTING.pack(*pair) for pair in pairs]))
        if self.connection_window > DEFAULT_WINDOW:
            out.credit(0, self.connection_window - DEFAULT_WINDOW)
