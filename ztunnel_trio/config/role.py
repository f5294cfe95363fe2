"""Which proxy this is: its mode, its own workload, what it tells the control plane of itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

import msgspec

from ztunnel_trio.config.environment import Environment
from ztunnel_trio.config.values import JsonValue
from ztunnel_trio.errors import ConfigError
from ztunnel_trio.facts import defaults, env
from ztunnel_trio.facts.network import (
    DEFAULT_TRUST_DOMAIN,
)
from ztunnel_trio.model.identity import SpiffeId
from ztunnel_trio.model.workload import WorkloadInfo


class ProxyMode(Enum):
    """The values are the names in the dump."""

    SHARED = "Shared"
    DEDICATED = "Dedicated"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToldConfig:
    """What the control plane is told of us."""

    proxy_metadata: Mapping[str, str]
    node_metadata_json: Mapping[str, JsonValue]
    instance_ip: str
    pod_name: str
    pod_namespace: str


def load_told(environ: Mapping[str, str], metadata: Mapping[str, str], notes: list[str]) -> ToldConfig:
    return ToldConfig(
        proxy_metadata=metadata,
        node_metadata_json=load_json_metadata(environ, notes),
        instance_ip=environ.get(env.INSTANCE_IP, defaults.INSTANCE_IP),
        pod_name=environ.get(env.POD_NAME, ""),
        pod_namespace=environ.get(env.POD_NAMESPACE, ""),
    )


def parse_mode(text: str) -> ProxyMode:
    """`shared` or `dedicated`."""
    for mode in ProxyMode:
        if text == mode.name.lower():
            return mode
    raise ConfigError("PROXY_MODE must be one of dedicated, shared")


def load_own(values: Environment) -> tuple[SpiffeId | None, WorkloadInfo | None]:
    """The proxy's own identity and workload, when all three of its names are set."""
    namespace, account = values.text(env.POD_NAMESPACE), values.text(env.SERVICE_ACCOUNT)
    name = values.text(env.POD_NAME)
    if namespace is None or account is None or name is None:
        return None, None
    trust_domain = values.text(env.TRUST_DOMAIN) or DEFAULT_TRUST_DOMAIN
    return SpiffeId(trust_domain, namespace, account), WorkloadInfo(name, namespace, account)


def load_workload_info(values: Environment) -> WorkloadInfo:
    """Who a dedicated proxy is.

    Raises:
        ConfigError: not said, or not as `namespace/name/service-account`.
    """
    text = values.text(env.PROXY_WORKLOAD_INFO)
    if text is None:
        raise ConfigError(
            "invalid configuration: PROXY_MODE=dedicated requires PROXY_WORKLOAD_INFO to be set"
        )
    parts = text.split("/", 2)
    if len(parts) < 3:
        raise ConfigError(
            f"invalid env var {env.PROXY_WORKLOAD_INFO}={text} (must match namespace/name/service-account)"
        )
    return WorkloadInfo(parts[1], parts[0], parts[2])


def load_json_metadata(environ: Mapping[str, str], notes: list[str]) -> dict[str, JsonValue]:
    """`ISTIO_METAJSON_*`; malformed ones are noted and left out."""
    found: dict[str, JsonValue] = {}
    for name, text in environ.items():
        if name.startswith(env.META_JSON_PREFIX):
            try:
                value: JsonValue = msgspec.json.decode(text)
            except (msgspec.DecodeError, RecursionError) as error:
                notes.append(f"{name} is left out, it is no JSON: {error}")
            else:
                found[name.removeprefix(env.META_JSON_PREFIX)] = value
    return found
