"""The mesh configuration file and `PROXY_CONFIG`: Istio's ProxyConfig, the keys that matter here."""

from collections.abc import Mapping
from typing import Annotated, Final, TypeVar

import msgspec
import yaml

from ztunnel_trio.config.machine import Machine
from ztunnel_trio.errors import ConfigError
from ztunnel_trio.facts import env
from ztunnel_trio.observe.words import os_error_text

MESH_FILE: Final = "./etc/istio/config/mesh"
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]


class ProxyConfig(msgspec.Struct, rename="camel", frozen=True):
    """The keys of Istio's ProxyConfig (mesh/v1alpha1) that matter here; others are ignored."""

    discovery_address: str | None = None
    proxy_admin_port: Port | None = None
    stats_port: Port | None = None
    concurrency: Port | None = None
    proxy_metadata: dict[str, str] = msgspec.field(default_factory=dict)


class MeshConfig(msgspec.Struct, rename="camel", frozen=True):
    """The one key of the mesh file that is read."""

    default_config: ProxyConfig | None = None


M = TypeVar("M")


def read_yaml(text: str, kind: type[M], failure: str) -> M:
    """Parse YAML (or JSON) into a struct.

    Raises:
        ConfigError: `failure` and the parser's words.
    """
    try:
        return msgspec.convert(yaml.safe_load(text), kind)
    except (yaml.YAMLError, msgspec.ValidationError, RecursionError, ValueError) as error:
        raise ConfigError(f"{failure}: {' '.join(str(error).split())}") from None


def load_proxy_config(environ: Mapping[str, str], machine: Machine) -> ProxyConfig:
    """The mesh file's `defaultConfig`, then `PROXY_CONFIG` over it; metadata merges by key.

    `ISTIO_META_` is taken off metadata keys that have it; `ISTIO_META_*` of the environment win.

    Raises:
        ConfigError: a source cannot be read or parsed.
    """
    failure = f"error parsing proxy config: failed parsing mesh config file {MESH_FILE}"
    base = ProxyConfig()
    try:
        text = machine.read_text(MESH_FILE)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ConfigError(f"{failure}: {os_error_text(error)}") from None
    else:
        base = read_yaml(text, MeshConfig, failure).default_config or base
    if text := environ.get(env.PROXY_CONFIG, ""):
        over = read_yaml(text, ProxyConfig, "error parsing proxy config: failed parsing proxy config env")
        base = ProxyConfig(
            discovery_address=base.discovery_address
            if over.discovery_address is None
            else over.discovery_address,
            proxy_admin_port=base.proxy_admin_port
            if over.proxy_admin_port is None
            else over.proxy_admin_port,
            stats_port=base.stats_port if over.stats_port is None else over.stats_port,
            concurrency=base.concurrency if over.concurrency is None else over.concurrency,
            proxy_metadata={**base.proxy_metadata, **over.proxy_metadata},
        )
    told = {key.removeprefix(env.META_PREFIX): value for key, value in base.proxy_metadata.items()}
    for name, value in environ.items():
        if name.startswith(env.META_PREFIX):
            while name.startswith(env.META_PREFIX):  # the reference takes off every repetition
                name = name.removeprefix(env.META_PREFIX)
            told[name] = value
    return msgspec.structs.replace(base, proxy_metadata=told)
