"""The policy store."""

from ztunnel_trio.mesh.policies import Policies
from ztunnel_trio.model.policy import Action, Authorization, PolicyScope
from ztunnel_trio.model.workload import Workload


def policy(scope: PolicyScope) -> Authorization:
    return Authorization(name="test_policy", namespace="default", scope=scope, action=Action.ALLOW)


def of_namespace(store: Policies) -> list[Authorization]:
    """What a workload of the namespace gets, to which nothing is attached."""
    return store.of_workload(Workload(uid="a", name="a", namespace="default"))[0]


def test_a_changed_scope_leaves_the_namespace() -> None:
    store = Policies()
    store.put("default/test_policy", policy(PolicyScope.NAMESPACE))
    assert len(of_namespace(store)) == 1

    store.put("default/test_policy", policy(PolicyScope.WORKLOAD_SELECTOR))

    assert of_namespace(store) == []
    assert store.get("default/test_policy") is not None
    assert len(store) == 1


def test_every_scope_can_be_removed() -> None:
    for scope in PolicyScope:
        store = Policies()
        store.put("a", policy(scope))
        assert store.remove("a")
        assert not store.remove("a")
        assert list(store) == []
        assert of_namespace(store) == []
