import logging
from dataclasses import fields, is_dataclass

import pytest

from tests.fakes.machine import loaded
from ztunnel_trio.assembly.proxies import proxy_settings


def changed(before: object, after: object) -> dict[str, object]:
    """What differs between two values of one dataclass, in dataclasses within as well."""
    assert is_dataclass(before)
    assert is_dataclass(after)
    found: dict[str, object] = {}
    for name in (field.name for field in fields(after)):
        was: object = getattr(before, name)
        value: object = getattr(after, name)
        if is_dataclass(value) and is_dataclass(was):
            found |= {f"{name}.{inner}": each for inner, each in changed(was, value).items()}
        elif value != was:
            found[name] = value
    return found


@pytest.mark.parametrize(
    ("variable", "value", "effect"),
    [
        ("ENABLE_PROXY", "false", {"is_on": False}),
        ("NETWORK", "west", {"network": "west"}),
        ("UNSTABLE_ENABLE_SOCKS5", "true", {"socks5": True, "illegal_ports": {15001, 15006, 15008, 15080}}),
        ("IPV6_ENABLED", "false", {"is_ipv6_enabled": False}),
        ("ENABLE_ORIG_SRC", "true", {"require_original_source": True}),
        ("ENABLE_ORIG_SRC", "false", {"require_original_source": False}),
        ("LOCALHOST_APP_TUNNEL", "false", {"localhost_app_tunnel": False}),
        ("ENABLE_RESPONSE_BAGGAGE", "false", {"response_baggage": False}),
        ("AUTHZ_POLICY_INFO_LOGGING", "true", {"policy_log_level": logging.INFO}),
        ("HTTP2_STREAM_WINDOW_SIZE", "70000", {"tunnel.stream_window": 70000}),
        ("HTTP2_CONNECTION_WINDOW_SIZE", "90000", {"tunnel.connection_window": 90000}),
        ("HTTP2_FRAME_SIZE", "20000", {"tunnel.frame_size": 20000}),
        (
            "POOL_MAX_STREAMS_PER_CONNECTION",
            "7",
            {"pool.max_streams": 7, "tunnel.assumed_peer_streams": 7},
        ),
        ("POOL_UNUSED_RELEASE_TIMEOUT", "1m", {"pool.idle_seconds": 60.0}),
    ],
)
def test_a_variable_changes_the_data_path(variable: str, value: str, effect: dict[str, object]) -> None:
    before, after = proxy_settings(loaded({})), proxy_settings(loaded({variable: value}))

    assert changed(before, after) == effect


def test_on_demand_discovery_reaches_the_data_path() -> None:
    environ = {"XDS_ON_DEMAND": "true", "ISTIO_META_DNS_CAPTURE": "false"}

    assert proxy_settings(loaded(environ)).on_demand
