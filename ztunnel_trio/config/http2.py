"""HTTP/2 of tunnels, and the pool of outbound ones."""

from dataclasses import dataclass
from typing import Final

from ztunnel_trio.config.environment import Environment
from ztunnel_trio.facts import defaults, env

SMALLEST_WINDOW: Final = 65535  # RFC 9113 6.9.2: a connection's window starts there
LARGEST_WINDOW: Final = 2**31 - 1  # RFC 9113 6.9.1
SMALLEST_FRAME, LARGEST_FRAME = 2**14, 2**24 - 1  # RFC 9113 6.5.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Http2Config:
    """HTTP/2 of tunnels, and the pool of outbound ones."""

    window_size: int
    connection_window_size: int
    frame_size: int
    pool_max_streams_per_conn: int
    pool_unused_release_timeout_seconds: float


def load_http2(values: Environment) -> Http2Config:
    return Http2Config(
        window_size=values.number(env.HTTP2_STREAM_WINDOW_SIZE, defaults.STREAM_WINDOW, most=LARGEST_WINDOW),
        connection_window_size=values.number(
            env.HTTP2_CONNECTION_WINDOW_SIZE,
            defaults.CONNECTION_WINDOW,
            least=SMALLEST_WINDOW,
            most=LARGEST_WINDOW,
        ),
        frame_size=values.number(
            env.HTTP2_FRAME_SIZE, defaults.FRAME_SIZE, least=SMALLEST_FRAME, most=LARGEST_FRAME
        ),
        pool_max_streams_per_conn=values.number(
            env.POOL_MAX_STREAMS_PER_CONNECTION, defaults.STREAMS_PER_TUNNEL, bits=16, least=1
        ),
        pool_unused_release_timeout_seconds=values.seconds(
            env.POOL_UNUSED_RELEASE_TIMEOUT, defaults.TUNNEL_IDLE_SECONDS
        ),
    )
