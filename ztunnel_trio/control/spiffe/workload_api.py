"""The SPIFFE Workload API: the certificates of the process that asks.

The agent attests the peer of its socket, so this serves a proxy for its own identity: in dedicated mode for
all it does, in shared mode to prove itself to the Broker API.
"""

from collections.abc import Callable
from typing import Final

from ztunnel_trio.control.spiffe.link import AgentLink
from ztunnel_trio.control.spiffe.states import WORKLOAD_STATE, read, state_of
from ztunnel_trio.model.svid import SvidState
from ztunnel_trio.pb.messages import X509SvidRequest, X509SvidResponse

X509_SVID_PATH: Final = "/SpiffeWorkloadAPI/FetchX509SVID"
METADATA: Final = {"workload.spiffe.io": "true"}  # SPIFFE Workload API 4.1: against forged requests


async def follow_own(link: AgentLink, deliver: Callable[[SvidState], None]) -> None:
    """Deliver every state of our own certificates until the agent ends the stream.

    Raises:
        Unavailable: the stream could not be opened, or ended with an error or with nonsense.
    """

    async def take(message: bytes) -> None:
        answer = read(X509SvidResponse, message, WORKLOAD_STATE)
        deliver(state_of(answer.svids, answer.federated_bundles, answer.crl))

    await link.follow(X509_SVID_PATH, bytes(X509SvidRequest()), take)
