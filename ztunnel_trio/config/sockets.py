"""TCP keepalive of connections."""

from dataclasses import dataclass
from typing import Final

from ztunnel_trio.config.environment import Environment
from ztunnel_trio.facts import env

KEEPALIVE_SECONDS: Final = 180.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketConfig:
    """TCP keepalive of connections."""

    keepalive_enabled: bool
    keepalive_time_seconds: float
    keepalive_interval_seconds: float
    keepalive_retries: int
    user_timeout_enabled: bool


def load_sockets(values: Environment) -> SocketConfig:
    return SocketConfig(
        keepalive_enabled=values.boolean(env.KEEPALIVE_ENABLED, default=True),
        keepalive_time_seconds=values.seconds(env.KEEPALIVE_TIME, KEEPALIVE_SECONDS),
        keepalive_interval_seconds=values.seconds(env.KEEPALIVE_INTERVAL, KEEPALIVE_SECONDS),
        keepalive_retries=values.number(env.KEEPALIVE_RETRIES, 9),
        user_timeout_enabled=values.boolean(env.USER_TIMEOUT_ENABLED, default=False),
    )
