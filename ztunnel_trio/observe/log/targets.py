"""The targets operators filter by, and the loggers that carry them."""

import logging
from typing import Final

OWN_ROOTS: Final = frozenset(
    {"admin", "app", "cert_fetcher", "config", "copy", "dns", "drain", "hyper_util", "identity", "inpod"}
    | {"metrics", "proxy", "proxyfactory", "rbac", "readiness", "signal", "socket", "state", "telemetry"}
    | {"tls", "xds"}
)
OWN_PREFIX: Final = "ztunnel::"
_targets: dict[str, str] = {}


def target_of(name: str) -> str:
    """The target of a logger: our own modules may leave out `ztunnel::`."""
    found = _targets.get(name)
    if found is None:
        own = name.split("::", 1)[0] in OWN_ROOTS and name != "dns"
        if len(_targets) < 4096:
            _targets[name] = OWN_PREFIX + name if own else name
        return OWN_PREFIX + name if own else name
    return found


def get_logger(target: str) -> logging.Logger:
    """The logger of a target: `inpod::statemanager` is `ztunnel::inpod::statemanager`."""
    return logging.getLogger(target_of(target))
