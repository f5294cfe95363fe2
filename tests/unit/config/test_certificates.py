"""Which provider a configuration names, and what it must bring along."""

import pytest

from ztunnel_trio.config.certificates import Attestation, CertificateConfig, Provider, load_certificates
from ztunnel_trio.config.environment import Environment
from ztunnel_trio.config.role import ProxyMode
from ztunnel_trio.errors import ConfigError
from ztunnel_trio.model.identity import SpiffeId
from ztunnel_trio.model.socket_target import TcpAddress, UnixPath

SHARED, DEDICATED = ProxyMode.SHARED, ProxyMode.DEDICATED
WORKLOAD = {"SPIFFE_ENDPOINT_SOCKET": "unix:///run/agent.sock"}
BROKER = {"CA_PROVIDER": "spiffe_broker", "SPIFFE_BROKER_SOCKET": "unix:///run/broker.sock"}


def load(environment: dict[str, str], mode: ProxyMode = SHARED) -> CertificateConfig:
    return load_certificates(Environment(environment), mode)


@pytest.mark.parametrize(
    ("environment", "provider"),
    [
        ({}, Provider.ISTIO_CA),
        ({"FAKE_CA": "true"}, Provider.FAKE),
        ({"CA_PROVIDER": "fake"}, Provider.FAKE),
        ({"SPIRE_ENABLED": "true"}, Provider.SPIRE_DELEGATED_PID),
        ({"SPIRE_ENABLED": "false"}, Provider.ISTIO_CA),
        ({"SPIRE_ENABLED": "true", "CA_PROVIDER": "spire_delegated_pid"}, Provider.SPIRE_DELEGATED_PID),
        ({"CA_PROVIDER": "spire_delegated_selectors"}, Provider.SPIRE_DELEGATED_SELECTORS),
        ({**BROKER, **WORKLOAD}, Provider.SPIFFE_BROKER),
    ],
)
def test_the_provider_has_a_name_or_an_alias(environment: dict[str, str], provider: Provider) -> None:
    assert load(environment).provider is provider


@pytest.mark.parametrize(
    ("environment", "mode", "text"),
    [
        ({"CA_PROVIDER": "vault"}, SHARED, r"invalid env var CA_PROVIDER=vault \(must be one of istio_ca, "),
        (
            {"SPIRE_ENABLED": "true", "CA_PROVIDER": "istio_ca"},
            SHARED,
            "SPIRE_ENABLED=true and CA_PROVIDER=istio_ca contradict each other",
        ),
        (
            {"SPIRE_ENABLED": "true", "FAKE_CA": "true"},
            SHARED,
            "SPIRE_ENABLED=true and CA_PROVIDER=fake contradict each other",
        ),
        (
            {"CA_PROVIDER": "spiffe_workload_api", **WORKLOAD},
            SHARED,
            "CA_PROVIDER=spiffe_workload_api .* needs PROXY_MODE=dedicated",
        ),
        (
            {"CA_PROVIDER": "spire_delegated_pid"},
            DEDICATED,
            "CA_PROVIDER=spire_delegated_pid attests pods; PROXY_MODE=dedicated needs spiffe_workload_api",
        ),
        ({"CA_PROVIDER": "spiffe_workload_api"}, DEDICATED, "needs SPIFFE_ENDPOINT_SOCKET"),
        ({"CA_PROVIDER": "spiffe_broker", **WORKLOAD}, SHARED, "needs SPIFFE_BROKER_SOCKET"),
        (BROKER, SHARED, "needs SPIFFE_ENDPOINT_SOCKET"),
        (
            {"SPIFFE_FOREIGN_TRUST_DOMAINS": "friend"},
            SHARED,
            "SPIFFE_FOREIGN_TRUST_DOMAINS=friend needs certificates from SPIRE, not CA_PROVIDER=istio_ca",
        ),
        (
            {**BROKER, **WORKLOAD, "SPIFFE_BROKER_ATTESTATION": "both"},
            SHARED,
            r"SPIFFE_BROKER_ATTESTATION=both \(must be one of k8s_object, pid\)",
        ),
        (
            {**BROKER, **WORKLOAD, "SPIFFE_BROKER_WORKLOAD_API_SPIFFE_ID": "me"},
            SHARED,
            r"SPIFFE_BROKER_WORKLOAD_API_SPIFFE_ID=me \(invalid spiffe identity: me\)",
        ),
        (
            {"SPIRE_ENABLED": "true", "SPIRE_ADMIN_ENDPOINT_SOCKET": "unix:admin.sock"},
            SHARED,
            r"SPIRE_ADMIN_ENDPOINT_SOCKET=unix:admin.sock \(a unix socket is named by an absolute path\)",
        ),
    ],
)
def test_contradictions_and_gaps_name_the_variable(
    environment: dict[str, str], mode: ProxyMode, text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        load(environment, mode)


def test_a_delegate_has_the_agents_usual_socket_and_ten_seconds() -> None:
    found = load({"CA_PROVIDER": "spire_delegated_selectors"})

    assert found.delegate_socket == UnixPath("/run/spire/sockets/admin.sock")
    assert found.timeout_seconds == 10.0
    assert not found.needs_processes


def test_a_broker_has_sockets_an_identity_and_a_way_to_name_pods() -> None:
    found = load(
        {
            **BROKER,
            "SPIFFE_BROKER_WORKLOAD_API_SOCKET": "tcp://127.0.0.1:8081",
            "SPIFFE_BROKER_TIMEOUT": "3s",
            "SPIFFE_BROKER_ATTESTATION": "pid",
            "SPIFFE_BROKER_WORKLOAD_API_SPIFFE_ID": "spiffe://td/ns/mesh/sa/node",
            "CONTAINER_RUNTIME_SOCK_PATH": "/run/containerd/containerd.sock",
            "SPIFFE_FOREIGN_TRUST_DOMAINS": "friend, neighbour,",
        }
    )

    assert found == CertificateConfig(
        provider=Provider.SPIFFE_BROKER,
        timeout_seconds=3.0,
        broker_socket=UnixPath("/run/broker.sock"),
        workload_socket=TcpAddress("127.0.0.1", 8081),
        attestation=Attestation.PID,
        own_id=SpiffeId("td", "mesh", "node"),
        runtime_socket="/run/containerd/containerd.sock",
        foreign_trust_domains=frozenset({"friend", "neighbour"}),
    )
    assert found.needs_processes
