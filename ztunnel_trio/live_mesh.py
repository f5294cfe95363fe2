"""The mesh with those who want to know of its changes.

Theory of operation: whoever hears of the mesh (istiod, a local file) hands batches to `apply`; the change and
the word of it are one synchronous step. Those who wait read first what is there and then wait for a
newer version, so nothing is missed in between.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from ztunnel_trio.mesh.mesh import Batch, Changes, Mesh
from ztunnel_trio.model.workload import Workload, WorkloadInfo
from ztunnel_trio.observe.log import get_logger
from ztunnel_trio.supervise.watch import Watch

log = get_logger("state")

LOCAL_WORKLOAD_SECONDS = 5.0  # ztunnel src/state.rs, wait_for_workload's callers


@dataclass(slots=True, eq=False)
class LiveMesh:
    """The one place the mesh is changed in. The watches carry its revision.

    `workloads_changed`: workloads or services came, changed or went. `policies_changed`: so did policies, or
    other policies were attached to a workload of this node. `on_workloads` is called with every change of
    workloads, after the mesh has changed and before anybody waiting runs.
    """

    mesh: Mesh
    workloads_changed: Watch[int] = field(default_factory=lambda: Watch(0))
    policies_changed: Watch[int] = field(default_factory=lambda: Watch(0))
    on_workloads: list[Callable[[Changes], None]] = field(default_factory=list)

    def apply(self, batch: Batch) -> Changes:
        """Change the mesh and tell those who want to know."""
        changes = self.mesh.apply(batch)
        for note in changes.notes:
            log.warning("%s", note)
        if changes.workloads:
            for tell in self.on_workloads:
                tell(changes)
        if changes.addresses:
            self.workloads_changed.publish(self.mesh.revision)
        if changes.policies or changes.attachments:
            self.policies_changed.publish(self.mesh.revision)
        return changes

    async def local_workload(
        self, info: WorkloadInfo, *, seconds: float = LOCAL_WORKLOAD_SECONDS
    ) -> Workload | None:
        """This node's workload of that name, namespace and account; waits for it at most so long."""
        version = self.workloads_changed.version
        workload = self.mesh.local_workload(info)
        if workload is not None:
            await trio.lowlevel.checkpoint_if_cancelled()  # asked for by every connection
            return workload
        with trio.move_on_after(seconds):
            while workload is None:
                version, _ = await self.workloads_changed.newer_than(version)
                workload = self.mesh.local_workload(info)
        if workload is None:
            log.warning("timed out waiting for workload '%s' from xds", info)
        return workload
