"""The authorization policies of the mesh: by key, and by the namespace they apply to."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from ztunnel_trio.model.policy import Authorization, PolicyScope
from ztunnel_trio.model.workload import Workload


@dataclass(slots=True, eq=False)
class Policies:
    """The store. A policy for selected workloads is found by its key only."""

    _by_key: dict[str, Authorization] = field(default_factory=dict)
    _global: dict[str, Authorization] = field(default_factory=dict)
    _by_namespace: dict[str, dict[str, Authorization]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._by_key)

    def __iter__(self) -> Iterator[Authorization]:
        return iter(self._by_key.values())

    def get(self, key: str) -> Authorization | None:
        """The policy of a resource name, `namespace/name`."""
        return self._by_key.get(key)

    def put(self, key: str, policy: Authorization) -> None:
        """Add a policy or replace it; its scope may change."""
        self.remove(key)
        self._by_key[key] = policy
        if policy.scope is PolicyScope.GLOBAL:
            self._global[key] = policy
        elif policy.scope is PolicyScope.NAMESPACE:
            self._by_namespace.setdefault(policy.namespace, {})[key] = policy

    def remove(self, key: str) -> bool:
        """Forget a policy; False if there was none."""
        policy = self._by_key.pop(key, None)
        if policy is None:
            return False
        if policy.scope is PolicyScope.GLOBAL:
            del self._global[key]
        elif policy.scope is PolicyScope.NAMESPACE:
            there = self._by_namespace[policy.namespace]
            del there[key]
            if not there:
                del self._by_namespace[policy.namespace]
        return True

    def of_workload(self, workload: Workload) -> tuple[list[Authorization], list[str]]:
        """The policies of a workload: mesh-wide, its namespace's, those attached; and the attached keys
        nobody knows (they are skipped: the policy may be on its way)."""
        found = [*self._global.values(), *self._by_namespace.get(workload.namespace, {}).values()]
        unknown: list[str] = []
        for key in workload.authorization_policies:
            policy = self._by_key.get(key)
            if policy is None:
                unknown.append(key)
            else:
                found.append(policy)
        return found, unknown
