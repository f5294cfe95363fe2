"""TCP keepalive of connections."""

from dataclasses import dataclass

from ztunnel_trio.config.environment import Environment
from ztunnel_trio.facts import defaults, env


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
        keepalive_time_seconds=values.seconds(env.KEEPALIVE_TIME, defaults.KEEPALIVE_SECONDS),
        keepalive_interval_seconds=values.seconds(env.KEEPALIVE_INTERVAL, defaults.KEEPALIVE_SECONDS),
        keepalive_retries=values.number(env.KEEPALIVE_RETRIES, defaults.KEEPALIVE_PROBES),
        user_timeout_enabled=values.boolean(env.USER_TIMEOUT_ENABLED, default=False),
    )
