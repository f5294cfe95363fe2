"""Certificates of pods that an agent attests by one of their processes.

When istio-cni adds a pod it has no process yet. Look-ups go on, less and less often, until one appears;
`hurry` has the next one done at once. Processes are tried one after the other: an init container or a side
container may be attested as somebody else.

A number may come to name another process between look-up and attestation. Where the node's processes can
be seen a pidfd is held meanwhile, and the process must be in the pod's network namespace before and after.
Where they cannot (the runtime told the number), the runtime is asked again: another answer is an error.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import trio

from ztunnel_trio.errors import Unavailable
from ztunnel_trio.model.certificate_key import AttestedPod, CertificateKey
from ztunnel_trio.model.svid import SvidState
from ztunnel_trio.model.workload_reference import ByProcess
from ztunnel_trio.net.netns import NetnsKey
from ztunnel_trio.net.processes import HeldProcess, processes_by_netns

log = logging.getLogger("ztunnel::identity::spire")

FIRST_LOOK_SECONDS: Final = 0.2
LONGEST_LOOK_SECONDS: Final = 2.0
SCAN_SERVES_SECONDS: Final = 0.1
"""How long one walk over the node's processes serves all who ask."""

Deliver = Callable[[SvidState], None]
Follow = Callable[[ByProcess, Deliver], Awaitable[None]]
Find = Callable[[AttestedPod], Awaitable[Sequence[int]]]


class NodeProcesses:
    """The node's processes as `/proc` shows them; walked in a thread, one walk for all who ask meanwhile."""

    def __init__(self) -> None:
        self._one_walk = trio.Lock()
        self._found: dict[NetnsKey, list[int]] = {}
        self._found_at = -float("inf")

    async def find(self, pod: AttestedPod) -> Sequence[int]:
        """The processes in a pod's network namespace, the oldest first, its sandbox left out."""
        async with self._one_walk:
            if trio.current_time() - self._found_at > SCAN_SERVES_SECONDS:
                self._found = await trio.to_thread.run_sync(processes_by_netns)
                self._found_at = trio.current_time()
        return [] if pod.netns is None else self._found.get(NetnsKey(pod.netns), [])


@dataclass(slots=True, eq=False)
class Processes:
    """Follows pods through their processes."""

    find: Find
    follow_process: Follow
    sees_processes: bool
    """The numbers that `find` gives are those of processes we see."""
    hurried: dict[CertificateKey, trio.Event] = field(default_factory=dict)

    def hurry(self, key: CertificateKey) -> None:
        """Look for a process of this pod at once, if one is looked for."""
        if (event := self.hurried.get(key)) is not None:
            event.set()

    async def appeared(self, key: CertificateKey) -> Sequence[int]:
        """Wait until the pod has processes.

        Raises:
            Unavailable: they cannot be looked for.
        """
        assert key.pod is not None
        seconds = FIRST_LOOK_SECONDS
        try:
            while True:
                event = self.hurried[key] = trio.Event()
                if pids := await self.find(key.pod):
                    return pids
                with trio.move_on_after(seconds):
                    await event.wait()
                seconds = min(seconds * 2, LONGEST_LOOK_SECONDS)
        finally:
            self.hurried.pop(key, None)

    async def follow(self, key: CertificateKey, pids: Sequence[int], deliver: Deliver) -> None:
        """Deliver the states of a pod through the first of its processes that is attested as `key` wants.

        The last one is followed whatever it is attested as: an entry may be made for it yet. Returns when
        the stream or the process ends.

        Raises:
            Unavailable: what the last process failed with.
        """
        follow_one = self._follow_seen if self.sees_processes else self._follow_told
        *others, last = pids
        for pid in others:
            try:
                await follow_one(_Attested(key, pid, deliver, has_rivals=True))
            except Unavailable as error:
                log.debug("process %d of pod %s: %s", pid, key.pod, error)
            else:
                return
        await follow_one(_Attested(key, last, deliver, has_rivals=False))

    async def _follow_seen(self, attested: "_Attested") -> None:
        """Follow a process we see, while it is held and in the pod's namespace."""
        pid, netns = attested.pid, NetnsKey(attested.netns)
        try:
            held = HeldProcess(pid)
        except OSError as error:
            raise Unavailable(f"process {pid} of pod {attested.pod} is gone: {error.strerror}") from error
        with held:

            def take(state: SvidState) -> None:
                if not held.is_in(netns):
                    raise attested.mismatch()
                attested.take(state)

            if not held.is_in(netns):
                raise attested.mismatch()
            await _beside(partial(self.follow_process, ByProcess(pid), take), partial(_cancel_at_end, held))

    async def _follow_told(self, attested: "_Attested") -> None:
        """Follow a process whose number the runtime told, and tells again after the first state."""
        waiting: list[SvidState] = []
        has_come, is_confirmed = trio.Event(), False

        def take(state: SvidState) -> None:
            if is_confirmed:
                attested.take(state)
            else:
                waiting[:] = [state]
                has_come.set()

        async def confirm(_: trio.CancelScope) -> None:
            nonlocal is_confirmed
            await has_come.wait()
            if attested.pid not in await self.find(attested.pod):
                raise attested.mismatch()
            is_confirmed = True
            attested.take(waiting.pop())

        await _beside(partial(self.follow_process, ByProcess(attested.pid), take), confirm)


@dataclass(frozen=True, slots=True)
class _Attested:
    """One process on trial for its pod."""

    key: CertificateKey
    pid: int
    deliver: Deliver
    has_rivals: bool  # others are tried if this one is somebody else

    @property
    def pod(self) -> AttestedPod:
        assert self.key.pod is not None
        return self.key.pod

    @property
    def netns(self) -> tuple[int, int]:
        if self.pod.netns is None:
            raise Unavailable(f"pod {self.pod} has no network namespace")
        return self.pod.netns

    def take(self, state: SvidState) -> None:
        """Pass on a state, unless it is somebody else's and there are others to try.

        Raises:
            Unavailable: it is, and there are.
        """
        is_wanted = any(svid.spiffe_id == str(self.key.identity) for svid in state.svids)
        if self.has_rivals and not is_wanted:
            given = ", ".join(svid.spiffe_id for svid in state.svids) or "nothing"
            raise Unavailable(f"process {self.pid} is attested as {given}")
        self.deliver(state)

    def mismatch(self) -> Unavailable:
        """The number is not, or no longer, that of a process of this pod."""
        return Unavailable(f"PID mismatch for pod {self.pod}: {self.pid} is not a process of it")


async def _beside(
    body: Callable[[], Awaitable[None]], watch: Callable[[trio.CancelScope], Awaitable[None]]
) -> None:
    """Run the body, and a watch beside it that may cancel it; a failure of either is raised, ungrouped."""
    failures: list[Unavailable] = []

    async def watched(scope: trio.CancelScope) -> None:
        try:
            await watch(scope)
        except Unavailable as error:
            failures.append(error)
            scope.cancel(reason="the watch has failed")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watched, nursery.cancel_scope)
        try:
            await body()
        except Unavailable as error:
            failures.append(error)
        nursery.cancel_scope.cancel(reason="the stream has ended")
    if failures:
        raise failures[0]


async def _cancel_at_end(held: HeldProcess, scope: trio.CancelScope) -> None:
    await trio.lowlevel.wait_readable(held)
    scope.cancel(reason="the attested process has ended")
