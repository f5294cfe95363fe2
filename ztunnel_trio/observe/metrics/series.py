"""A bounded table of label sets that peers can write.

Theory of operation. What is counted for one set of labels is one object, whatever number of families shows
it: its families come and go together, as dashboards subtract them. A label set that has not moved for
`idle_seconds` and is not in use leaves with the next `sweep`. A table that is full, by number or by bytes,
first gives up who has been idle for `spare_seconds`, looking at some in turn; where there is nobody, the
event is counted on one overflow series, whose labels but the first `fixed` are `overflow`. So a flood of
names costs its own series only: what is known keeps counting. Values longer than `LONGEST_LABEL` are cut.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

import trio

OVERFLOW: Final = "overflow"
LONGEST_LABEL: Final = 512  # characters; a SPIFFE identity with the longest Kubernetes names has 400
LOOK_AT: Final = 16  # label sets looked at to find one that may be forgotten
SWEPT_AT_ONCE: Final = 512
FIXED_BYTES: Final = 1500  # of a label set, beside its text: measured with tracemalloc
BYTES_A_CHARACTER: Final = 4  # the labels, and the rendered text of two sets of response flags


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesLimits:
    """How much is kept."""

    most: int = 20_000
    most_bytes: int = 96 << 20
    idle_seconds: float = 900.0
    spare_seconds: float = 300.0


class Counted(Protocol):
    """What is counted for one set of labels."""

    touched_at: float

    @property
    def is_in_use(self) -> bool:
        """Something still counts on it: it must not be forgotten."""
        ...


S = TypeVar("S", bound=Counted)


class SeriesTable(Generic[S]):
    """Label sets and what is counted of each. `clock` is in seconds."""

    def __init__(
        self,
        make: Callable[[tuple[str, ...]], S],
        clock: Callable[[], float],
        limits: SeriesLimits,
        *,
        fixed: int = 0,
    ) -> None:
        self._make = make
        self._clock = clock
        self._limits = limits
        self._fixed = fixed
        self._series: dict[tuple[str, ...], S] = {}  # hashed once a use: a key has 26 strings
        self._hand: Iterator[tuple[str, ...]] = iter(())  # over who may be given up next
        self._overflow: dict[tuple[str, ...], S] = {}
        self._bytes = 0
        self.overflowed = 0

    def __len__(self) -> int:
        return len(self._series)

    def get(self, labels: tuple[str, ...]) -> S:
        """What is counted for these labels, which have just been used."""
        series = self._series.get(labels)
        if series is None:
            series = self._add(labels)
        series.touched_at = self._clock()
        return series

    def _add(self, labels: tuple[str, ...]) -> S:
        if max(map(len, labels), default=0) > LONGEST_LABEL:
            labels = tuple([label[:LONGEST_LABEL] for label in labels])
            if (known := self._series.get(labels)) is not None:
                return known
        size = size_of(labels)
        while len(self._series) >= self._limits.most or self._bytes + size > self._limits.most_bytes:
            if not self._spare_one():
                return self._overflowing(labels)
        self._bytes += size
        series = self._series[labels] = self._make(labels)
        return series

    def _overflowing(self, labels: tuple[str, ...]) -> S:
        self.overflowed += 1
        shown = (*labels[: self._fixed], *[OVERFLOW] * (len(labels) - self._fixed))
        found = self._overflow.get(shown)
        if found is None:
            found = self._overflow[shown] = self._make(shown)
        return found

    def _spare_one(self) -> bool:
        """Forget one that nobody has used for a while; whether a few looks found one."""
        limit = self._clock() - self._limits.spare_seconds
        for _ in range(min(LOOK_AT, len(self._series))):
            labels = next(self._hand, None)
            if labels is None:
                self._hand = iter(list(self._series))
                labels = next(self._hand)
            series = self._series.get(labels)
            if series is not None and not series.is_in_use and series.touched_at <= limit:
                self._forget(labels)
                return True
        return False

    def _forget(self, labels: tuple[str, ...]) -> None:
        del self._series[labels]
        self._bytes -= size_of(labels)

    def expire(self, chosen: Iterable[tuple[str, ...]] | None = None) -> None:
        """Forget those among the chosen, or of all, that have been idle for too long."""
        limit = self._clock() - self._limits.idle_seconds
        for labels in list(self._series) if chosen is None else chosen:
            series = self._series.get(labels)
            if series is not None and not series.is_in_use and series.touched_at < limit:
                self._forget(labels)

    async def sweep(self) -> int:
        """Forget who has been idle for too long, letting others run in between; how many those were."""
        labels = list(self._series)
        for start in range(0, len(labels), SWEPT_AT_ONCE):
            self.expire(labels[start : start + SWEPT_AT_ONCE])
            await trio.lowlevel.checkpoint()
        self._hand = iter(())  # it holds on to the labels of who is gone
        if len(self._series) < len(labels) // 2:
            self._series = dict(self._series)  # one that had more keys keeps their room
        return max(0, len(labels) - len(self._series))

    def every(self) -> list[S]:
        """All there are now, those of overflow last."""
        return [*self._series.values(), *self._overflow.values()]


def size_of(labels: tuple[str, ...]) -> int:
    """About how many bytes a label set takes, with its text."""
    return FIXED_BYTES + BYTES_A_CHARACTER * sum(map(len, labels))
