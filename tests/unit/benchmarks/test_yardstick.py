"""The yardstick: what a ratio is, and when it is worse."""

import os
import sys
import time

import pytest

from tests.benchmarks import yardstick
from tests.benchmarks.yardstick import Build, Rounds


def test_a_ratio_is_one_of_costs_of_rates_as_well() -> None:
    assert yardstick.cost_ratios("p50_us", [110.0, 90.0], [100.0, 100.0]) == [1.1, 0.9]
    assert yardstick.cost_ratios("per_second", [100.0], [110.0]) == [1.1]
    assert yardstick.cost_ratios("failed", [0.0], [0.0]) == []


@pytest.mark.parametrize(
    ("ratios", "itself", "is_worse"),
    [
        ([0.9, 0.9, 1.03, 1.5, 1.5], [], False),
        ([0.9, 0.9, 1.04, 1.5, 1.5], [], True),
        ([1.04] * 5, [0.99, 1.05], False),
        ([1.04] * 5, [0.95, 1.0], False),  # it could as well have been measured the other way round
        ([1.04] * 5, [0.99, 1.02], True),
        ([1.04] * 4, [], False),  # too few to say
    ],
)
def test_worse_is_what_neither_the_limit_nor_chance_explains(
    ratios: list[float], itself: list[float], is_worse: bool
) -> None:
    assert yardstick.is_worse(ratios, itself) is is_worse


def test_who_comes_first_changes_from_round_to_round(capsys: pytest.CaptureFixture[str]) -> None:
    this = Build.of("this", sys.executable)
    other = Build.of("beside", sys.executable)

    assert list(Rounds(3, [this, other], None).order()) == [this, other, other, this, this, other]
    assert "round 3 of 3: beside" in capsys.readouterr().err


def test_a_command_that_is_none_ends_the_run() -> None:
    with pytest.raises(SystemExit, match="no such command: no-ztunnel"):
        yardstick.python_of("no-ztunnel")


def test_processor_time_of_a_process_is_what_it_says_itself() -> None:
    before = time.process_time()
    found = yardstick.cpu_seconds(os.getpid())

    assert before <= found <= time.process_time()
