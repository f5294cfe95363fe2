"""Two workloads, and what is known of a connection between them."""

from ztunnel_trio.model.address import SocketAddress
from ztunnel_trio.model.baggage import Baggage
from ztunnel_trio.model.connection import Direction
from ztunnel_trio.model.service import Service
from ztunnel_trio.model.workload import Locality, Workload
from ztunnel_trio.observe.access.facts import ConnectionFacts

CLIENT = Workload(
    uid="Kubernetes//Pod/default/client", name="client-0", namespace="default", service_account="client",
    workload_name="client", canonical_name="client", canonical_revision="v1",
    locality=Locality("r1", "z1", "s1"),
)  # fmt: skip
SERVER = Workload(
    uid="Kubernetes//Pod/default/server", name="server-0", namespace="default", service_account="server",
    workload_name="server", canonical_name="server", canonical_revision="v2",
)  # fmt: skip
SERVICE = Service(name="server", namespace="default", hostname="server.default.svc.cluster.local")
GATEWAY = Workload(uid="gw", name="gw-0", namespace="istio-gateways", workload_name="gw")


def at(text: str) -> SocketAddress:
    """An address from text."""
    return SocketAddress.parse(text)


def outbound(**changes: object) -> ConnectionFacts:
    """A connection over HBONE from CLIENT to SERVER, but for these changes."""
    facts = ConnectionFacts(
        direction=Direction.OUTBOUND,
        source=at("10.77.2.10:40000"),
        destination=at("10.77.2.11:15008"),
        hbone_target=at("10.77.2.11:8080"),
        source_workload=CLIENT,
        source_identity=CLIENT.identity,
        destination_workload=SERVER,
        destination_service=SERVICE,
        mutual_tls=True,
    )
    for name, value in changes.items():
        setattr(facts, name, value)
    return facts


BAGGAGE = Baggage(
    cluster="remote", namespace="far", workload_name="web", service_name="web-service", revision="v7",
    region="r9", zone="z9",
)  # fmt: skip
