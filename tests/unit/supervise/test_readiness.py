import logging

import pytest

from ztunnel_trio.supervise.readiness import Readiness, format_elapsed


def test_it_is_ready_when_every_gate_is_open(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    readiness = Readiness(clock=lambda: now)
    mesh, proxy = readiness.gate("state manager"), readiness.gate("proxy")
    assert readiness.pending() == ["proxy", "state manager"]

    with caplog.at_level(logging.INFO, "ztunnel::readiness"):
        now = 0.1523
        mesh.open()
        mesh.open()
        assert not readiness.is_ready
        now = 0.4
        proxy.open()

    assert readiness.is_ready
    assert [record.getMessage() for record in caplog.records] == [
        "Task 'state manager' complete (152.3ms), still awaiting 1 tasks",
        "Task 'proxy' complete (400ms), marking server ready",
    ]


def test_a_gate_that_closes_again_takes_readiness_back() -> None:
    readiness = Readiness()
    agent = readiness.gate("workload proxy manager")
    agent.open()

    agent.close()

    assert readiness.pending() == ["workload proxy manager"]


def test_it_can_be_asked_for_how_long_each_gate_has_been_closed() -> None:
    now = 10.0
    readiness = Readiness(began=0, clock=lambda: now)
    agent, _ = readiness.gate("agent"), readiness.gate("proxy")
    now = 12.0
    agent.open()
    assert readiness.pending_seconds() == {"proxy": 2}

    agent.close()
    now = 15.0
    agent.close()

    assert readiness.pending_seconds() == {"agent": 3, "proxy": 5}


@pytest.mark.parametrize(
    ("seconds", "text"), [(1.25, "1.25s"), (60, "60s"), (0.1523, "152.3ms"), (87e-6, "87µs"), (5e-9, "5ns")]
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert format_elapsed(seconds) == text
