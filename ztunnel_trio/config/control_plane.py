"""Where mesh, certificates and revocations come from."""

from dataclasses import dataclass, field
from typing import Final

from ztunnel_trio.config.environment import Environment
from ztunnel_trio.config.machine import Machine
from ztunnel_trio.config.mesh_file import ProxyConfig
from ztunnel_trio.config.values import Unstartable
from ztunnel_trio.errors import ConfigError
from ztunnel_trio.facts import defaults, env
from ztunnel_trio.grammar import (
    ControlPlaneAddress,
    parse_uri,
)
from ztunnel_trio.model.source import FromFile, Literal, RootSource, SystemRoots, TokenSource

SYSTEM_ROOTS: Final = "SYSTEM"
ISTIOD: Final = "https://istiod.istio-system.svc:15012"
LOCAL_ISTIOD: Final = "https://localhost:15012"


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlPlaneConfig:
    """Where mesh, certificates and revocations come from, and how we prove ourselves there.

    No address: not used.
    """

    xds_address: ControlPlaneAddress | None
    ca_address: ControlPlaneAddress | None
    xds_root_cert: RootSource
    ca_root_cert: RootSource
    alt_xds_hostname: str | None
    alt_ca_hostname: str | None
    auth: TokenSource | None
    xds_headers: tuple[tuple[str, str], ...]
    ca_headers: tuple[tuple[str, str], ...]
    secret_ttl_seconds: float
    fake_ca_root: str | None
    xds_on_demand: bool
    local_xds_path: str | None
    local_xds: str | None = field(repr=False)
    crl_path: str | None


def load_control_plane(
    values: Environment, proxy_config: ProxyConfig, machine: Machine, notes: list[str], *, has_ca: bool
) -> ControlPlaneConfig:
    """Read where mesh and certificates come from; without `has_ca` those do not come from a CA outside."""
    xds_address, ca_address = load_addresses(values, proxy_config, has_ca=has_ca)
    local_path, local_text = values.text(env.LOCAL_XDS_PATH), values.text(env.LOCAL_XDS)
    if local_path is not None and local_text is not None:
        raise ConfigError("invalid configuration: only one of LOCAL_XDS_PATH or LOCAL_XDS may be set")
    return ControlPlaneConfig(
        xds_address=xds_address,
        ca_address=ca_address,
        xds_root_cert=load_roots(values, env.XDS_ROOT_CA, machine, notes if xds_address else []),
        ca_root_cert=load_roots(values, env.CA_ROOT_CA, machine, notes if ca_address else []),
        alt_xds_hostname=values.text(env.ALT_XDS_HOSTNAME),
        alt_ca_hostname=values.text(env.ALT_CA_HOSTNAME),
        auth=load_auth(values, machine, notes),
        xds_headers=values.headers(env.XDS_HEADER_PREFIX),
        ca_headers=values.headers(env.CA_HEADER_PREFIX),
        secret_ttl_seconds=values.seconds(env.SECRET_TTL, defaults.CERTIFICATE_SECONDS),
        fake_ca_root=values.text(env.FAKE_CA_ROOT) or None,
        xds_on_demand=values.boolean(env.XDS_ON_DEMAND, default=False),
        local_xds_path=local_path,
        local_xds=local_text,
        crl_path=values.text(env.CRL_PATH) or None,
    )


def load_addresses(
    values: Environment, proxy_config: ProxyConfig, *, has_ca: bool
) -> tuple[ControlPlaneAddress | None, ControlPlaneAddress | None]:
    """The control plane's address, and the CA's.

    Raises:
        ConfigError: an address is no URI, or not one of HTTPS.
        Unstartable: there is no CA at all.
    """
    inside = values.text(env.KUBERNETES_SERVICE_HOST) is not None
    istiod = ISTIOD if inside else LOCAL_ISTIOD
    xds, ca, xds_name = values.text(env.XDS_ADDRESS), values.text(env.CA_ADDRESS), env.XDS_ADDRESS
    if xds is None and proxy_config.discovery_address is not None:
        xds, xds_name = proxy_config.discovery_address, "discoveryAddress"
    xds = istiod if xds is None else xds
    xds_address = parse_server(xds_name, xds) if xds else None
    if not has_ca:
        return xds_address, None
    if ca == "":
        raise Unstartable("invalid configuration: CA_ADDRESS is empty; set FAKE_CA=true to run without a CA")
    return xds_address, parse_server(env.CA_ADDRESS, istiod if ca is None else ca)


def parse_server(name: str, text: str) -> ControlPlaneAddress:
    """The address of a server that is spoken to over TLS; `name` is the setting's.

    Raises:
        ConfigError: no URI, or one of plain HTTP, which could never connect.
    """
    address = parse_uri(text)
    if address.scheme != "https":
        raise ConfigError(f"invalid configuration: {name}={text}: the scheme must be https, or left out")
    return address


def load_roots(values: Environment, name: str, machine: Machine, notes: list[str]) -> RootSource:
    """An existing file, the system's store, or the text itself; a path that is no file trusts nobody."""
    text = values.text(name)
    chosen = defaults.ROOT_FILE if text is None else text
    if machine.exists(chosen):
        return FromFile(chosen)
    if chosen == SYSTEM_ROOTS:
        return SystemRoots()
    if "BEGIN CERTIFICATE" not in chosen:
        notes.append(f"{name}: there is no file {chosen} and it is no PEM text, so no server is trusted")
    return Literal(chosen)


def load_auth(values: Environment, machine: Machine, notes: list[str]) -> TokenSource | None:
    """Where the token comes from; what looks like a path and names no file is told, but not shown."""
    text = values.text(env.AUTH_TOKEN)
    if text is None:
        return FromFile(defaults.TOKEN_FILE) if machine.exists(defaults.TOKEN_FILE) else None
    if not text:
        return None
    if machine.exists(text):
        return FromFile(text)
    if text.startswith(("/", "./", "../")):
        notes.append(
            f"{env.AUTH_TOKEN} looks like a path, but there is no such file: its text is sent as the token"
        )
    return Literal(text)
