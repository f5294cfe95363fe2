"""What a workload certificate is asked for by: an identity, and the pod that is to have it.

A CA that signs for an identity gives all pods of a service account one certificate; an authority that
attests pods gives each its own. Pods are told apart by the uid istio-cni gives them and by their network
namespace, so that a pod that was added anew is another one.
"""

from dataclasses import dataclass

from ztunnel_trio.model.identity import SpiffeId
from ztunnel_trio.model.workload import WorkloadInfo


@dataclass(frozen=True, slots=True)
class AttestedPod:
    """A pod of this node as istio-cni told of it; `netns` is (device, inode) of its network namespace."""

    uid: str
    info: WorkloadInfo
    netns: tuple[int, int] | None = None

    def __str__(self) -> str:
        return f"{self.info.namespace}/{self.info.name}"


@dataclass(frozen=True, slots=True)
class CertificateKey:
    """One entry of the certificate keeper. `pod` is None where pods of one identity share a certificate."""

    identity: SpiffeId
    pod: AttestedPod | None = None

    def __str__(self) -> str:
        return str(self.identity) if self.pod is None else f"{self.identity} for pod {self.pod}"
