"""Authorization at work: a workload's policies, compiled once and kept while they stand."""

from dataclasses import dataclass, field

from ztunnel_trio.decide.authorize import Judgement, Note, Permit, Rejection
from ztunnel_trio.model.connection import InboundConnection
from ztunnel_trio.model.workload import Workload
from ztunnel_trio.observe.log import get_logger
from ztunnel_trio.proxy.node import NodeParts

log = get_logger("rbac")
state_log = get_logger("state")


@dataclass(slots=True, eq=False)
class Judge:
    """Judges the inbound connections of one workload."""

    node: NodeParts
    _version: int = -1
    _attached: tuple[str, ...] = ()
    _namespace: str = ""
    _judgement: Judgement = field(default_factory=lambda: Judgement(()))

    def authorize(self, connection: InboundConnection, workload: Workload) -> Permit | Rejection:
        """Decide, and leave the notes of the decision in the log."""
        verdict = self.judgement(workload).authorize(connection)
        level = self.node.settings.policy_log_level
        if log.isEnabledFor(level):
            write_notes(level, verdict.notes)
        return verdict

    def allows(self, connection: InboundConnection, workload: Workload) -> bool:
        """Decide without a word."""
        return isinstance(self.judgement(workload).authorize(connection), Permit)

    def judgement(self, workload: Workload) -> Judgement:
        """The compiled policies of the workload, made anew when they or their attachment changed."""
        version = self.node.live.policies_changed.version
        attached, namespace = workload.authorization_policies, workload.namespace
        if (version, attached, namespace) != (self._version, self._attached, self._namespace):
            policies, unknown = self.node.live.mesh.policies_for(workload)
            for key in unknown:
                state_log.warning("skipping unknown policy %s", key)
            self._judgement = Judgement(policies)
            self._version, self._attached, self._namespace = version, attached, namespace
        return self._judgement


def write_notes(level: int, notes: tuple[Note, ...]) -> None:
    """One line a note: the message, and the policy it is about."""
    for note in notes:
        fields = {} if note.policy is None else {"policy": note.policy}
        log.log(level, "%s", note.message, extra={"fields": fields})
