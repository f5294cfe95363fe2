"""What each interface of an agent is to `certs.subscribed`: an `SvidSource`."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

import trio

from ztunnel_trio.control.spiffe.broker import PACKAGE, follow_brokered
from ztunnel_trio.control.spiffe.by_process import Processes
from ztunnel_trio.control.spiffe.delegated import DelegatedIdentity
from ztunnel_trio.control.spiffe.link import AgentLink
from ztunnel_trio.control.spiffe.workload_api import follow_own
from ztunnel_trio.errors import Unavailable
from ztunnel_trio.model.certificate_key import CertificateKey
from ztunnel_trio.model.svid import SvidState
from ztunnel_trio.model.workload_reference import ByCalling, ByPod, ByProcess, BySelectors, Reference

Deliver = Callable[[SvidState], None]


@dataclass(frozen=True, slots=True, eq=False)
class Shared:
    """What all streams of an interface stand on: parts that run side by side until cancelled."""

    parts: Sequence[Callable[[], Awaitable[NoReturn]]]

    async def run(self) -> NoReturn:
        """Run all of them."""
        async with trio.open_nursery() as nursery:
            for part in self.parts:
                nursery.start_soon(part)
            await trio.sleep_forever()
        raise AssertionError("unreachable")


@dataclass(frozen=True, slots=True, eq=False)
class Selectors:
    """Delegated Identity by all that is known of a pod; the agent takes it as attested."""

    api: DelegatedIdentity
    node_name: str | None
    attests_pods: bool = True

    async def run(self) -> NoReturn:
        """See `certs.subscribed.SvidSource`."""
        await self.api.run()

    async def locate(self, key: CertificateKey) -> Sequence[Reference]:
        """The Kubernetes selectors of the pod."""
        await trio.lowlevel.checkpoint()
        return [BySelectors(tuple(("k8s", text) for text in _facts(key, self.node_name)))]

    async def follow(self, key: CertificateKey, found: Sequence[Reference], deliver: Deliver) -> None:
        """See `certs.subscribed.SvidSource`."""
        reference = found[0]
        assert isinstance(reference, BySelectors)
        await self.api.follow(reference, deliver)

    def hurry(self, key: CertificateKey) -> None:
        """Nothing is looked for."""


@dataclass(frozen=True, slots=True, eq=False)
class AttestedProcesses:
    """Pods by one of their processes, over whichever interface takes them (`shared` is what it runs)."""

    processes: Processes
    shared: Shared
    attests_pods: bool = True

    async def run(self) -> NoReturn:
        """See `certs.subscribed.SvidSource`."""
        await self.shared.run()

    async def locate(self, key: CertificateKey) -> Sequence[Reference]:
        """The pod's processes, once it has any."""
        return [ByProcess(pid) for pid in await self.processes.appeared(key)]

    async def follow(self, key: CertificateKey, found: Sequence[Reference], deliver: Deliver) -> None:
        """See `certs.subscribed.SvidSource`."""
        pids = [each.pid for each in found if isinstance(each, ByProcess)]
        await self.processes.follow(key, pids, deliver)

    def hurry(self, key: CertificateKey) -> None:
        """Look for the pod's processes now."""
        self.processes.hurry(key)


@dataclass(frozen=True, slots=True, eq=False)
class BrokeredPods:
    """Pods by their uid and name over the Broker API."""

    link: AgentLink
    shared: Shared
    package: str = PACKAGE
    attests_pods: bool = True

    async def run(self) -> NoReturn:
        """See `certs.subscribed.SvidSource`."""
        await self.shared.run()

    async def locate(self, key: CertificateKey) -> Sequence[Reference]:
        """The pod itself."""
        await trio.lowlevel.checkpoint()
        if key.pod is None:
            raise Unavailable(f"no pod is known for {key.identity}")
        return [ByPod(key.pod.uid, key.pod.info.namespace, key.pod.info.name)]

    async def follow(self, key: CertificateKey, found: Sequence[Reference], deliver: Deliver) -> None:
        """See `certs.subscribed.SvidSource`."""
        reference = found[0]
        assert isinstance(reference, ByPod)
        await follow_brokered(self.link, reference, deliver, package=self.package)

    def hurry(self, key: CertificateKey) -> None:
        """Nothing is looked for."""


@dataclass(frozen=True, slots=True, eq=False)
class OwnCertificates:
    """The Workload API: what the agent gives this process."""

    link: AgentLink
    attests_pods: bool = False

    async def run(self) -> NoReturn:
        """See `certs.subscribed.SvidSource`."""
        await self.link.run()

    async def locate(self, key: CertificateKey) -> Sequence[Reference]:
        """We are where we are."""
        await trio.lowlevel.checkpoint()
        return [ByCalling()]

    async def follow(self, key: CertificateKey, found: Sequence[Reference], deliver: Deliver) -> None:
        """See `certs.subscribed.SvidSource`."""
        await follow_own(self.link, deliver)

    def hurry(self, key: CertificateKey) -> None:
        """Nothing is looked for."""


def _facts(key: CertificateKey, node_name: str | None) -> list[str]:
    """The selectors of a pod, as SPIRE's `k8s` attestor forms them: `<name>:<value>`."""
    identity, pod = key.identity, key.pod
    facts = [f"ns:{identity.namespace}", f"sa:{identity.service_account}"]
    if pod is not None:
        facts += [f"pod-name:{pod.info.name}", f"pod-uid:{pod.uid}"]
    return facts if node_name is None else [*facts, f"node-name:{node_name}"]
