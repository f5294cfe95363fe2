"""The system's resolver configuration."""

from typing import Final

from ztunnel_trio.config.machine import Machine
from ztunnel_trio.config.values import Unstartable
from ztunnel_trio.dns.resolv_conf import ResolvConf, parse_resolv_conf
from ztunnel_trio.errors import ConfigError

RESOLV_CONF: Final = "/etc/resolv.conf"


def load_resolver(machine: Machine) -> ResolvConf:
    """The system's resolver configuration.

    Raises:
        Unstartable: it cannot be read or names no server.
    """
    try:
        return parse_resolv_conf(machine.read_text(RESOLV_CONF))
    except OSError as error:
        raise Unstartable(f"failed to read {RESOLV_CONF}: {error.strerror}") from None
    except ConfigError as error:
        raise Unstartable(str(error)) from None
