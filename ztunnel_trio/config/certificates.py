"""Where workload certificates come from: a CA that signs, our own, or an agent of SPIRE."""

from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from ztunnel_trio.config.environment import Environment
from ztunnel_trio.config.role import ProxyMode
from ztunnel_trio.errors import ConfigError, PeerBrokeProtocol
from ztunnel_trio.facts import defaults, env
from ztunnel_trio.grammar import parse_socket
from ztunnel_trio.model.identity import SpiffeId
from ztunnel_trio.model.socket_target import SocketTarget, UnixPath

ADMIN_SOCKET: Final[SocketTarget] = UnixPath(defaults.SPIRE_ADMIN_SOCKET)
OWN_ID: Final = SpiffeId("cluster.local", "istio-system", "ztunnel")


class Provider(Enum):
    """The values of CA_PROVIDER."""

    ISTIO_CA = "istio_ca"
    SPIRE_DELEGATED_SELECTORS = "spire_delegated_selectors"
    SPIRE_DELEGATED_PID = "spire_delegated_pid"
    SPIFFE_BROKER = "spiffe_broker"
    SPIFFE_WORKLOAD_API = "spiffe_workload_api"
    FAKE = "fake"


class Attestation(Enum):
    """The values of SPIFFE_BROKER_ATTESTATION: how the Broker API is told of a pod."""

    K8S_OBJECT = "k8s_object"
    PID = "pid"


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateConfig:
    """The provider, and what those of SPIRE need. A socket that the provider has no use for is None."""

    provider: Provider
    timeout_seconds: float = defaults.ATTESTATION_SECONDS
    delegate_socket: SocketTarget | None = None
    workload_socket: SocketTarget | None = None
    broker_socket: SocketTarget | None = None
    attestation: Attestation = Attestation.K8S_OBJECT
    draft_references: bool = False
    own_id: SpiffeId = OWN_ID
    runtime_socket: str | None = None
    foreign_trust_domains: frozenset[str] = frozenset()

    @property
    def needs_processes(self) -> bool:
        """Whether pods are attested by one of their processes."""
        return self.provider is Provider.SPIRE_DELEGATED_PID or (
            self.provider is Provider.SPIFFE_BROKER and self.attestation is Attestation.PID
        )


def load_certificates(values: Environment, mode: ProxyMode) -> CertificateConfig:
    """Read the provider and its settings.

    Raises:
        ConfigError: two settings contradict each other, or one that the provider needs is missing.
    """
    provider = load_provider(values, mode)
    timeout = env.SPIFFE_BROKER_TIMEOUT if provider is Provider.SPIFFE_BROKER else env.SPIRE_TIMEOUT
    common = CertificateConfig(
        provider=provider,
        timeout_seconds=values.seconds(timeout, defaults.ATTESTATION_SECONDS),
        runtime_socket=values.text(env.CONTAINER_RUNTIME_SOCK_PATH) or None,
        foreign_trust_domains=load_trust_domains(values, provider),
    )
    match provider:
        case Provider.SPIRE_DELEGATED_PID | Provider.SPIRE_DELEGATED_SELECTORS:
            socket = values.read(env.SPIRE_ADMIN_ENDPOINT_SOCKET, parse_socket, ADMIN_SOCKET)
            return replace(common, delegate_socket=socket)
        case Provider.SPIFFE_WORKLOAD_API:
            return replace(common, workload_socket=needed(values, provider, env.SPIFFE_ENDPOINT_SOCKET))
        case Provider.SPIFFE_BROKER:
            own = env.SPIFFE_BROKER_WORKLOAD_API_SOCKET
            own = own if values.text(own) is not None else env.SPIFFE_ENDPOINT_SOCKET
            return replace(
                common,
                broker_socket=needed(values, provider, env.SPIFFE_BROKER_SOCKET),
                workload_socket=needed(values, provider, own),
                attestation=values.read(
                    env.SPIFFE_BROKER_ATTESTATION, parse_attestation, Attestation.K8S_OBJECT
                ),
                draft_references=values.boolean(env.SPIFFE_BROKER_DRAFT_REFERENCES, default=False),
                own_id=values.read(env.SPIFFE_BROKER_WORKLOAD_API_SPIFFE_ID, parse_id, OWN_ID),
            )
        case Provider.ISTIO_CA | Provider.FAKE:
            return common


def load_provider(values: Environment, mode: ProxyMode) -> Provider:
    """CA_PROVIDER, or what other settings stand for."""
    chosen = values.read(env.CA_PROVIDER, parse_provider, None)
    aliases = (
        (env.FAKE_CA, Provider.FAKE),
        (env.SPIRE_ENABLED, Provider.SPIRE_DELEGATED_PID),
    )
    for name, meant in aliases:
        if values.boolean(name, default=False):
            if chosen is not None and chosen is not meant:
                told = f"{env.CA_PROVIDER}={chosen.value}"
                raise ConfigError(f"invalid configuration: {name}=true and {told} contradict each other")
            chosen = meant
    provider = Provider.ISTIO_CA if chosen is None else chosen
    is_for_pods = provider not in (Provider.ISTIO_CA, Provider.FAKE, Provider.SPIFFE_WORKLOAD_API)
    if provider is Provider.SPIFFE_WORKLOAD_API and mode is ProxyMode.SHARED:
        raise ConfigError(
            f"invalid configuration: {env.CA_PROVIDER}={provider.value} gives this process's own certificate"
            f" only; it needs {env.PROXY_MODE}=dedicated"
        )
    if is_for_pods and mode is ProxyMode.DEDICATED:
        raise ConfigError(
            f"invalid configuration: {env.CA_PROVIDER}={provider.value} attests pods;"
            f" {env.PROXY_MODE}=dedicated needs {Provider.SPIFFE_WORKLOAD_API.value}"
        )
    return provider


def needed(values: Environment, provider: Provider, name: str) -> SocketTarget:
    """A socket that has no default."""
    found = values.read(name, parse_socket, None)
    if found is None:
        raise ConfigError(f"invalid configuration: {env.CA_PROVIDER}={provider.value} needs {name}")
    return found


def load_trust_domains(values: Environment, provider: Provider) -> frozenset[str]:
    """The trust domains that are let in; only SPIRE brings their bundles along.

    Raises:
        ConfigError: they are named, and certificates come from elsewhere.
    """
    text = values.text(env.SPIFFE_FOREIGN_TRUST_DOMAINS) or ""
    found = frozenset(name.strip() for name in text.split(",") if name.strip())
    if found and provider in (Provider.ISTIO_CA, Provider.FAKE):
        raise ConfigError(
            f"invalid configuration: {env.SPIFFE_FOREIGN_TRUST_DOMAINS}={text} needs certificates from SPIRE,"
            f" not {env.CA_PROVIDER}={provider.value}"
        )
    return found


def parse_provider(text: str) -> Provider | None:
    for provider in Provider:
        if text == provider.value:
            return provider
    raise ConfigError(f"must be one of {', '.join(each.value for each in Provider)}")


def parse_attestation(text: str) -> Attestation:
    for attestation in Attestation:
        if text == attestation.value:
            return attestation
    raise ConfigError(f"must be one of {', '.join(each.value for each in Attestation)}")


def parse_id(text: str) -> SpiffeId:
    try:
        return SpiffeId.parse(text)
    except PeerBrokeProtocol as error:
        raise ConfigError(str(error)) from None
