"""How sockets are made."""

from ztunnel_trio.config import Config
from ztunnel_trio.net.sockets import SocketSettings


def socket_settings(config: Config, *, mark: int | None, reuse_port: bool) -> SocketSettings:
    """How sockets are made; a mark of 0 means none."""
    return SocketSettings(
        mark=mark or None,
        keepalive=config.sockets.keepalive_enabled,
        keepalive_idle_seconds=int(config.sockets.keepalive_time_seconds),
        keepalive_interval_seconds=int(config.sockets.keepalive_interval_seconds),
        keepalive_probes=config.sockets.keepalive_retries,
        user_timeout=config.sockets.user_timeout_enabled,
        reuse_port=reuse_port,
        ipv6=config.ipv6_enabled,
    )
