"""How we reach the control plane and prove ourselves there."""

from ztunnel_trio.config import Config
from ztunnel_trio.control.credentials import Caller
from ztunnel_trio.control.grpc import Target
from ztunnel_trio.grammar import ControlPlaneAddress


def make_target(address: ControlPlaneAddress, alternative_name: str | None) -> Target:
    return Target(host=address.host, port=address.port, alternative_name=alternative_name)


def make_caller(config: Config, headers: tuple[tuple[str, str], ...]) -> Caller:
    """How we prove ourselves to the control plane."""
    return Caller(token=config.control.auth, cluster_id=config.cluster_id, extra_headers=dict(headers))
