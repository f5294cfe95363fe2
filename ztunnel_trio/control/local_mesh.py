"""A mesh from a file or from text in a setting, for tests, examples and machines without istiod.

Theory of operation: the document is loaded once before anything else starts; an error then is the operator's
to mend. A file is watched from then on: when it has changed and been left alone for one look, it is read
again and the mesh changed in one step, what vanished from the file included. A broken file changes nothing
but the log. What istiod says of the same names holds until the file changes.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from os import stat
from pathlib import Path
from typing import Final, NoReturn

import trio

from ztunnel_trio.errors import ConfigError
from ztunnel_trio.live_mesh import LiveMesh
from ztunnel_trio.mesh.document import (
    Json,
    MeshDocument,
    local_workload_document,
    policy_document,
    read_local,
    service_document,
)
from ztunnel_trio.mesh.entries import AddressEntry, PolicyEntry, workload_entry
from ztunnel_trio.mesh.mesh import Batch
from ztunnel_trio.observe.log import get_logger
from ztunnel_trio.observe.words import os_error_text

log = get_logger("xds")

LOOK_SECONDS: Final = 1.0
TEXT_NAME: Final = "LOCAL_XDS"

Stamp = tuple[int, int, int] | None
"""Device, inode and time of change of a file; None: there is none."""


@dataclass(frozen=True, slots=True)
class LocalSource:
    """Where the document is: in a file (`LOCAL_XDS_PATH`) or given as text (`LOCAL_XDS`)."""

    path: Path | None = None
    text: str | None = None

    @property
    def name(self) -> str:
        """What errors call it."""
        return TEXT_NAME if self.path is None else str(self.path)

    def load(self) -> MeshDocument:
        """Read the document. Blocks on the file.

        Raises:
            ConfigError: naming the source, the place in it and the value there.
        """
        try:
            text = (self.text or "") if self.path is None else self.path.read_text(encoding="utf-8")
            return read_local(text)
        except OSError as error:
            raise ConfigError(f"{self.name}: cannot be read: {os_error_text(error)}") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"{self.name}: cannot be read: {error}") from error
        except ConfigError as error:
            raise ConfigError(f"{self.name}: {error}") from error

    def stamp(self) -> Stamp:
        """What changes when the file does, also where a link to it is replaced."""
        if self.path is None:
            return None
        try:
            found = stat(self.path)
        except OSError:
            return None
        return found.st_dev, found.st_ino, found.st_mtime_ns


@dataclass(slots=True, eq=False)
class LocalMesh:
    """Keeps the live mesh as the document says. State: what was applied last, and of which file."""

    live: LiveMesh
    source: LocalSource
    look_seconds: float = LOOK_SECONDS
    limiter: trio.CapacityLimiter | None = None
    _applied: MeshDocument = field(default_factory=MeshDocument)
    _stamp: Stamp = None

    def start(self) -> None:
        """Load the document for the first time. Blocks on the file.

        Raises:
            ConfigError: naming the source, the place in it and the value there.
        """
        self._stamp = self.source.stamp()
        self._apply(self.source.load())

    async def run(self) -> NoReturn:
        """Follow the file; never returns. Text in a setting cannot change."""
        if self.source.path is None:
            await trio.sleep_forever()
        previous = self._stamp
        while True:
            await trio.sleep(self.look_seconds)
            stamp = self.source.stamp()
            if stamp != self._stamp and stamp == previous:
                await self._reload(stamp)
            previous = stamp

    async def _reload(self, stamp: Stamp) -> None:
        self._stamp = stamp
        try:
            document = await trio.to_thread.run_sync(self.source.load, limiter=self.limiter)
        except ConfigError as error:
            log.error("%s; the mesh stays as it was", error)
            return
        self._apply(document)

    def _apply(self, document: MeshDocument) -> None:
        """Change the mesh from what was applied last to the document, in one step."""
        self.live.apply(change(self._applied, document))
        self._applied = document
        fields = {"num_workloads": len(document.workloads), "num_policies": len(document.policies)}
        log.info("local config initialized", extra={"fields": fields})


def change(old: MeshDocument, new: MeshDocument) -> Batch:
    """What leads from one document to another.

    Services go first: a service drops the endpoints its old form listed, then workloads add theirs.
    """
    addresses: list[AddressEntry] = [*new.services, *[workload_entry(each) for each in new.workloads]]
    policies = [PolicyEntry(policy.key, policy) for policy in new.policies]
    return Batch(
        addresses=addresses,
        removed_addresses=_vanished(_address_names(old), _address_names(new)),
        policies=policies,
        removed_policies=_vanished(
            [policy.key for policy in old.policies], [policy.key for policy in new.policies]
        ),
    )


def _address_names(document: MeshDocument) -> list[str]:
    """Workloads before services, as a name could be either's."""
    workloads = [workload.uid for workload in document.workloads]
    return workloads + [str(entry.service.key) for entry in document.services]


def _vanished(old: Iterable[str], new: Iterable[str]) -> list[str]:
    left = set(new)
    return [name for name in dict.fromkeys(old) if name not in left]


def static_document(source: LocalSource | None) -> dict[str, Json]:
    """The document as it is now, for the config dump: empty where there is none or it is broken."""
    document = MeshDocument()
    if source is not None:
        try:
            document = source.load()
        except ConfigError as error:
            log.error("%s", error)
    return {
        "policies": [policy_document(policy) for policy in document.policies],
        "services": [service_document(entry.service, entry.endpoints) for entry in document.services],
        "workloads": [local_workload_document(workload) for workload in document.workloads],
    }
