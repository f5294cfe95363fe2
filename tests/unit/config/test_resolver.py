import pytest

from tests.fakes.machine import FakeMachine, loaded
from ztunnel_trio.config import Unstartable, load
from ztunnel_trio.config.resolver import RESOLV_CONF


def test_a_machine_without_resolvers_cannot_start() -> None:
    with pytest.raises(Unstartable, match="no name servers"):
        loaded(files={RESOLV_CONF: "search x\n"})
    with pytest.raises(Unstartable, match=r"failed to read /etc/resolv\.conf: Permission denied"):
        load({}, FakeMachine(failing=frozenset({RESOLV_CONF})))
