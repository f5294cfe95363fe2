"""The SPIFFE Broker API: certificates of workloads that a broker, known by its own SVID, names by reference.

Bundles come with each message: results are not shared between workloads (SPIFFE Broker API, final text).
"""

from collections.abc import Callable
from typing import Final

import betterproto2

from ztunnel_trio.control.spiffe.link import AgentLink
from ztunnel_trio.control.spiffe.states import WORKLOAD_STATE, read, state_of
from ztunnel_trio.model.svid import SvidState
from ztunnel_trio.model.workload_reference import ByPod, ByProcess
from ztunnel_trio.pb.messages.google.protobuf import Any
from ztunnel_trio.pb.messages.spiffe.broker import (
    KubernetesObjectKey,
    KubernetesObjectReference,
    KubernetesObjectType,
    SubscribeToX509SvidRequest,
    SubscribeToX509SvidResponse,
    WorkloadPidReference,
    WorkloadReference,
)

SUBSCRIBE_PATH: Final = "/spiffe.broker.API/SubscribeToX509SVID"
METADATA: Final = {"broker.spiffe.io": "true"}
PACKAGE: Final = "spiffe.broker"
DRAFT_PACKAGE: Final = "spiffe.reference"
"""What the references were called before the specification was final; same fields."""


async def follow_brokered(
    link: AgentLink,
    reference: ByPod | ByProcess,
    deliver: Callable[[SvidState], None],
    *,
    package: str = PACKAGE,
) -> None:
    """Deliver every state of one workload until the agent ends the stream.

    Raises:
        Unavailable: the stream could not be opened, or ended with an error or with nonsense.
    """

    async def take(message: bytes) -> None:
        answer = read(SubscribeToX509SvidResponse, message, WORKLOAD_STATE)
        deliver(state_of(answer.svids, answer.federated_bundles, answer.crl))

    request = SubscribeToX509SvidRequest(reference=_reference(reference, package))
    await link.follow(SUBSCRIBE_PATH, bytes(request), take)


def _reference(reference: ByPod | ByProcess, package: str) -> WorkloadReference:
    match reference:
        case ByProcess(pid):
            return _any(f"{package}.WorkloadPIDReference", WorkloadPidReference(pid=pid))
        case ByPod(uid, namespace, pod):
            return _any(
                f"{package}.KubernetesObjectReference",
                KubernetesObjectReference(
                    type=KubernetesObjectType(plural="pods", group="core"),
                    key=KubernetesObjectKey(namespace=namespace, name=pod),
                    uid=uid,
                ),
            )


def _any(name: str, message: betterproto2.Message) -> WorkloadReference:
    return WorkloadReference(reference=Any(type_url=f"type.googleapis.com/{name}", value=bytes(message)))
