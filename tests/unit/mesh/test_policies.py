"""The policy store."""

from ztunnel_trio.mesh.policies import Policies
from ztunnel_trio.model.policy import Action, Authorization, PolicyScope


def policy(scope: PolicyScope) -> Authorization:
    return Authorization(name="test_policy", namespace="default", scope=scope, action=Action.ALLOW)


def test_a_changed_scope_leaves_the_namespace() -> None:
    store = Policies()
    store.put("default/test_policy", policy(PolicyScope.NAMESPACE))
    assert len(store.of_namespace("default")) == 1

    store.put("default/test_policy", policy(PolicyScope.WORKLOAD_SELECTOR))

    assert store.of_namespace("default") == []
    assert store.get("default/test_policy") is not None
    assert len(store) == 1


def test_every_scope_can_be_removed() -> None:
    for scope in PolicyScope:
        store = Policies()
        store.put("a", policy(scope))
        assert store.remove("a")
        assert not store.remove("a")
        assert list(store) == []
        assert store.of_namespace("default") == []
