"""The authorization policies of the mesh: by resource name, and by the namespace they apply to.

Policies of one scope are asked in the order of their names, whatever order they came in: which of several is
named as the one that decided is the same on every node.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator

from ztunnel_trio.model.policy import Authorization, PolicyScope
from ztunnel_trio.model.workload import Workload


class Policies:
    """The store. A policy for selected workloads is found by its name only."""

    __slots__ = ("_by_key", "_by_namespace", "_global")

    def __init__(self) -> None:
        self._by_key: dict[str, Authorization] = {}
        self._global: list[str] = []
        self._by_namespace: dict[str, list[str]] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    def __iter__(self) -> Iterator[str]:
        """The resource names."""
        return iter(self._by_key)

    def get(self, key: str) -> Authorization | None:
        """The policy of a resource name; istiod's are `namespace/name`."""
        return self._by_key.get(key)

    def put(self, key: str, policy: Authorization) -> None:
        """Add a policy or replace it; its scope may change."""
        self.remove(key)
        self._by_key[key] = policy
        if policy.scope is PolicyScope.GLOBAL:
            insort(self._global, key)
        elif policy.scope is PolicyScope.NAMESPACE:
            insort(self._by_namespace.setdefault(policy.namespace, []), key)

    def remove(self, key: str) -> bool:
        """Forget a policy; False if there was none."""
        policy = self._by_key.pop(key, None)
        if policy is None:
            return False
        if policy.scope is PolicyScope.GLOBAL:
            _take(self._global, key)
        elif policy.scope is PolicyScope.NAMESPACE:
            there = self._by_namespace[policy.namespace]
            _take(there, key)
            if not there:
                del self._by_namespace[policy.namespace]
        return True

    def of_workload(self, workload: Workload) -> tuple[list[Authorization], list[str]]:
        """The policies of a workload: mesh-wide, its namespace's, those attached; and the attached keys
        nobody knows (they are skipped: the policy may be on its way)."""
        by_key = self._by_key
        found = [by_key[key] for key in (*self._global, *self._by_namespace.get(workload.namespace, ()))]
        unknown: list[str] = []
        for key in workload.authorization_policies:
            policy = by_key.get(key)
            if policy is None:
                unknown.append(key)
            else:
                found.append(policy)
        return found, unknown


def _take(keys: list[str], key: str) -> None:
    """Take a key out of a sorted list that has it."""
    del keys[bisect_left(keys, key)]
