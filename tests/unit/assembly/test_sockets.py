from dataclasses import asdict

import pytest

from tests.fakes.machine import loaded
from ztunnel_trio.assembly.sockets import socket_settings


def changed(before: dict[str, object], after: dict[str, object]) -> dict[str, object]:
    """What differs, one level down as well."""
    found: dict[str, object] = {}
    for key, value in after.items():
        was = before[key]
        if isinstance(value, dict) and isinstance(was, dict):
            found |= {f"{key}.{inner}": each for inner, each in changed(was, value).items()}
        elif value != was:
            found[key] = value
    return found


@pytest.mark.parametrize(
    ("variable", "value", "effect"),
    [
        ("KEEPALIVE_ENABLED", "false", {"keepalive": False}),
        ("KEEPALIVE_TIME", "2m", {"keepalive_idle_seconds": 120}),
        ("KEEPALIVE_TIME", "1500ms", {"keepalive_idle_seconds": 1}),
        ("KEEPALIVE_INTERVAL", "5", {"keepalive_interval_seconds": 5}),
        ("KEEPALIVE_RETRIES", "3", {"keepalive_probes": 3}),
        ("USER_TIMEOUT_ENABLED", "true", {"user_timeout": True}),
        ("IPV6_ENABLED", "false", {"ipv6": False}),
    ],
)
def test_a_variable_changes_sockets(variable: str, value: str, effect: dict[str, object]) -> None:
    before, after = (
        asdict(socket_settings(loaded(environ), mark=1337, reuse_port=True))
        for environ in ({}, {variable: value})
    )

    assert changed(before, after) == effect


def test_a_mark_of_nothing_is_none() -> None:
    assert socket_settings(loaded({}), mark=0, reuse_port=False).mark is None
