"""Services: keys, visibility and whether unhealthy endpoints count."""

import pytest

from ztunnel_trio.model.address import NamespacedHostname
from ztunnel_trio.model.service import (
    HealthPolicy,
    LoadBalancer,
    LoadBalancingMode,
    Service,
    Visibility,
)


def test_a_service_is_known_by_namespace_and_hostname() -> None:
    assert Service(namespace="ns", hostname="web.ns").key == NamespacedHostname("ns", "web.ns")


@pytest.mark.parametrize(
    ("visibility", "client", "visible"),
    [
        (Visibility.PUBLIC, "other", True),
        (Visibility.NAMESPACE, "ns", True),
        (Visibility.NAMESPACE, "other", False),
        (Visibility.NAMESPACE, "", False),
        (Visibility.NAMESPACE, None, True),  # nobody in particular asks
    ],
)
def test_a_service_may_be_for_its_own_namespace_only(
    visibility: Visibility, client: str | None, visible: bool
) -> None:
    assert Service(namespace="ns", visibility=visibility).is_visible_to(client) is visible


def test_unhealthy_endpoints_count_only_where_the_service_says_so() -> None:
    def service(policy: HealthPolicy) -> Service:
        return Service(load_balancer=LoadBalancer((), LoadBalancingMode.STANDARD, policy))

    assert not Service().allows_unhealthy
    assert not service(HealthPolicy.ONLY_HEALTHY).allows_unhealthy
    assert service(HealthPolicy.ALLOW_ALL).allows_unhealthy
