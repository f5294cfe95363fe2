import pytest

from ztunnel_trio.observe.log import get_logger
from ztunnel_trio.observe.log.targets import target_of


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("xds::client", "ztunnel::xds::client"),
        ("ztunnel::xds::client", "ztunnel::xds::client"),
        ("dns::server", "ztunnel::dns::server"),
        ("dns", "dns"),
        ("access", "access"),
        ("ztunnel", "ztunnel"),
        ("h2.connection", "h2.connection"),
    ],
)
def test_our_targets_may_be_named_without_their_prefix(name: str, target: str) -> None:
    assert get_logger(name).name == target_of(name) == target
