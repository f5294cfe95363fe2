"""Families whose labels only we write: a number for each of a few label sets."""

from collections.abc import Callable, Iterator, Mapping

from ztunnel_trio.observe.metrics.exposition import label_text, number_text
from ztunnel_trio.observe.metrics.families import Family, FamilyKind

Values = Mapping[tuple[str, ...], float]
"""Samples by label values, in the order of the family's labels."""


class PlainFamily:
    """The samples of one family."""

    __slots__ = ("_read", "_values", "family")

    def __init__(self, family: Family) -> None:
        self.family = family
        self._values: dict[tuple[str, ...], float] = (
            {} if family.labels or not family.begins_at_zero else {(): 0}
        )
        self._read: Callable[[], Values] | None = None

    def add(self, *labels: str, by: float = 1) -> None:
        """Count on."""
        self._values[labels] = self._values.get(labels, 0) + by

    def set(self, value: float, *labels: str) -> None:
        """Replace the value."""
        self._values[labels] = value

    def read_from(self, read: Callable[[], Values]) -> None:
        """Ask for the samples whenever they are shown, instead of keeping them."""
        self._read = read

    def lines(self) -> Iterator[str]:
        """The samples as text."""
        name = f"{self.family.name}_total" if self.family.kind is FamilyKind.COUNTER else self.family.name
        for labels, value in list((self._values if self._read is None else self._read()).items()):
            text = label_text(zip(self.family.labels, labels, strict=True))
            yield f"{name}{text} {number_text(value)}"
