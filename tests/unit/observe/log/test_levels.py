import pytest

from ztunnel_trio.observe.log.levels import DEBUG, ERROR, INFO, OFF, TRACE, WARN, level_of


@pytest.mark.parametrize(
    ("number", "level"), [(50, ERROR), (45, ERROR), (30, WARN), (25, INFO), (10, DEBUG), (1, TRACE)]
)
def test_any_level_number_is_one_of_ours(number: int, level: int) -> None:
    assert level_of(number) == level


def test_off_is_above_every_level() -> None:
    assert ERROR < OFF
