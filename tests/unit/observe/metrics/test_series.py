from dataclasses import dataclass

from tests.fakes.trio_test import trio_test
from ztunnel_trio.observe.metrics.series import LONGEST_LABEL, OVERFLOW, SeriesLimits, SeriesTable, size_of


@dataclass(slots=True, eq=False)
class Kept:
    labels: tuple[str, ...]
    is_in_use: bool = False
    touched_at: float = 0.0


class Desk:
    """A table with a clock that is set by hand."""

    def __init__(self, limits: SeriesLimits, *, fixed: int = 0) -> None:
        self.now = 0.0
        self.table: SeriesTable[Kept] = SeriesTable(Kept, lambda: self.now, limits, fixed=fixed)

    def names(self) -> list[str]:
        return [one.labels[-1] for one in self.table.every()]


def test_the_same_labels_are_counted_on_one_series() -> None:
    desk = Desk(SeriesLimits())

    assert desk.table.get(("a",)) is desk.table.get(("a",))
    assert len(desk.table) == 1


def test_a_full_table_gives_up_who_was_idle_for_a_while_before_it_overflows() -> None:
    desk = Desk(SeriesLimits(most=2, spare_seconds=10))
    desk.table.get(("old",))
    desk.now = 5
    desk.table.get(("young",))
    desk.now = 11

    desk.table.get(("new",))
    desk.table.get(("late",))

    assert desk.names() == ["young", "new", OVERFLOW]
    assert desk.table.overflowed == 1


def test_who_is_in_use_is_not_given_up() -> None:
    desk = Desk(SeriesLimits(most=1, spare_seconds=10))
    desk.table.get(("live",)).is_in_use = True
    desk.now = 100

    desk.table.get(("new",))

    assert desk.names() == ["live", OVERFLOW]


def test_the_first_labels_stay_on_the_overflow_series() -> None:
    desk = Desk(SeriesLimits(most=0), fixed=1)

    assert desk.table.get(("source", "a", "b")).labels == ("source", OVERFLOW, OVERFLOW)
    assert desk.table.get(("source", "c", "d")) is desk.table.get(("source", "a", "b"))
    assert desk.table.get(("destination", "c", "d")).labels[0] == "destination"


def test_a_table_is_full_by_bytes_too() -> None:
    label = "x" * 100
    desk = Desk(SeriesLimits(most_bytes=2 * size_of((label,))))
    for number in range(3):
        desk.table.get((f"{number}{label}"[:100],))

    assert len(desk.table) == 2


def test_bytes_come_back_with_what_is_forgotten() -> None:
    desk = Desk(SeriesLimits(most_bytes=size_of(("a",)), idle_seconds=60))
    for name in ("a", "b", "c"):
        desk.table.get((name,))
        desk.now += 61
        desk.table.expire()

    assert (len(desk.table), desk.table.overflowed) == (0, 0)


def test_long_values_are_cut_and_cut_values_counted_together() -> None:
    desk = Desk(SeriesLimits())
    series = desk.table.get(("x" * 10_000,))

    assert series.labels == ("x" * LONGEST_LABEL,)
    assert desk.table.get(("x" * 20_000,)) is series
    assert len(desk.table) == 1


@trio_test
async def test_a_sweep_forgets_the_idle_only() -> None:
    desk = Desk(SeriesLimits(idle_seconds=60))
    for number in range(2000):
        desk.table.get((f"gone{number}",))
    desk.table.get(("live",)).is_in_use = True
    desk.now = 61
    desk.table.get(("young",))

    await desk.table.sweep()

    assert desk.names() == ["live", "young"]
