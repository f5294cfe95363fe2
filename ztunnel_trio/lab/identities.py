"""Certificates of a lab's pods from a stand-in SPIRE agent, instead of istiod's CA.

One agent serves all nodes of a lab. A pod is registered when it is added, for whichever way its proxy names
it. The forms that name processes need one in the pod's network namespace: it waits for the lab to end.
"""

import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from ztunnel_trio.lab.hosts import Host
from ztunnel_trio.lab.pki import Authority
from ztunnel_trio.lab.spire_agent import (
    BROKER_SOCKET,
    DELEGATE_SOCKET,
    WORKLOAD_SOCKET,
    Account,
    AttestedCaller,
    InNetns,
    PodUid,
    SpireAgent,
    Subject,
)
from ztunnel_trio.model.identity import SpiffeId

DIRECTORY: Final = "spire"
_WAIT: Final = "import sys; sys.stdin.read()"  # ends with the lab, which holds the other end of its input
_END_SECONDS: Final = 5.0


class Attested(Protocol):
    """What is needed of a pod."""

    @property
    def uid(self) -> str: ...

    @property
    def host(self) -> Host: ...

    @property
    def identity(self) -> SpiffeId: ...


@dataclass(slots=True, eq=False)
class SpireIdentities:
    """The agent of a lab. `provider` is the proxies' CA_PROVIDER, `own` their own identity."""

    provider: str
    own: SpiffeId
    directory: Path
    with_processes: bool = False
    agent: SpireAgent = field(default_factory=lambda: SpireAgent(Authority("ztunnel-trio lab SPIRE")))
    _registered: dict[str, tuple[Subject, ...]] = field(default_factory=dict)
    _processes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None, None]:
        """Serve the agent's sockets for the body's time."""
        self.directory.mkdir()
        self.agent.register(AttestedCaller(), str(self.own))
        try:
            async with self.agent.running(self.directory, brokers=[str(self.own)]):
                yield
        finally:
            for uid in list(self._processes):
                self._end(uid)

    def environment(self) -> dict[str, str]:
        """What a proxy's environment has instead of a CA's address."""
        return {
            "CA_PROVIDER": self.provider,
            "SPIRE_ADMIN_ENDPOINT_SOCKET": f"unix://{self.directory / DELEGATE_SOCKET}",
            "SPIFFE_ENDPOINT_SOCKET": f"unix://{self.directory / WORKLOAD_SOCKET}",
            "SPIFFE_BROKER_SOCKET": f"unix://{self.directory / BROKER_SOCKET}",
        }

    def register(self, pod: Attested) -> None:
        """Make the entries of a pod, and its process."""
        self.forget(pod.uid)
        identity = pod.identity
        account = Account(identity.namespace, identity.service_account)
        subjects = (account, PodUid(pod.uid), InNetns(pod.host.netns.key))
        self._registered[pod.uid] = subjects
        for subject in subjects:
            self.agent.register(subject, str(identity))
        if self.with_processes:
            with pod.host.netns.inside():
                command = [sys.executable, "-S", "-c", _WAIT]
                self._processes[pod.uid] = subprocess.Popen(command, stdin=subprocess.PIPE)

    def forget(self, uid: str) -> None:
        """Remove a pod's entries, unless another pod has the same, and end its process."""
        gone = self._registered.pop(uid, ())
        kept = {subject for subjects in self._registered.values() for subject in subjects}
        for subject in gone:
            if subject not in kept:
                self.agent.withdraw(subject)
        self._end(uid)

    def _end(self, uid: str) -> None:
        process = self._processes.pop(uid, None)
        if process is not None:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(_END_SECONDS)
