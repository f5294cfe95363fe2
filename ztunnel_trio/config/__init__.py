"""The process's settings: environment and mesh configuration file become one frozen `Config`.

Everything is read once, before any socket is opened. Only `app` and `assembly` read a `Config`; parts
get their own settings from it. Each module reads one subsystem's variables. The variables are listed in
`facts.env`, their value forms are in `grammar`.
"""

from ztunnel_trio.config.certificates import Attestation, CertificateConfig, Provider
from ztunnel_trio.config.load import Config, load
from ztunnel_trio.config.role import ProxyMode
from ztunnel_trio.config.values import JsonValue, Unstartable

__all__ = [
    "Attestation",
    "CertificateConfig",
    "Config",
    "JsonValue",
    "Provider",
    "ProxyMode",
    "Unstartable",
    "load",
]
