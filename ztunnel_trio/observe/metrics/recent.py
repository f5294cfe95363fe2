"""Which label values were used last."""

from collections import OrderedDict


class Recent:
    """The label values used last, at most so many; tells which to drop when a new one comes."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._used: OrderedDict[tuple[str, ...], None] = OrderedDict()

    def use(self, values: tuple[str, ...]) -> tuple[str, ...] | None:
        """Note a use; returns the values whose series are to be removed, if any."""
        if values in self._used:
            self._used.move_to_end(values)
            return None
        self._used[values] = None
        return self._used.popitem(last=False)[0] if len(self._used) > self._most else None
