"""Readiness as named gates: ready when every registered gate is open.

A gate counts from the moment it is made, so register before anything can ask. A gate may close
again (the agent's connection was lost); then the process is not ready until it opens anew.
"""

import logging
import time
from collections.abc import Callable

log = logging.getLogger("ztunnel::readiness")


class Gate:
    """One thing that must have happened. Made by `Readiness.gate`; closed at first."""

    __slots__ = ("_readiness", "name")

    def __init__(self, readiness: "Readiness", name: str) -> None:
        self.name = name
        self._readiness = readiness

    def open(self) -> None:
        """It has happened. Opening twice changes nothing."""
        self._readiness.opened(self.name)

    def close(self) -> None:
        """It must happen again."""
        self._readiness.closed(self.name)

    @property
    def is_open(self) -> bool:
        return self.name not in self._readiness.pending()


class Readiness:
    """All gates of the process. The log counts from `began`, when the process did by `clock`."""

    __slots__ = ("_began", "_clock", "_pending")

    def __init__(self, *, began: float | None = None, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._began = clock() if began is None else began
        self._pending: dict[str, float] = {}  # and since when

    def gate(self, name: str) -> Gate:
        """Register a gate, closed. The names operators know: `state manager`, `proxy`, `dns proxy`,
        `workload proxy manager`."""
        self._pending[name] = self._clock()
        return Gate(self, name)

    @property
    def is_ready(self) -> bool:
        return not self._pending

    def pending(self) -> list[str]:
        """The names of the closed gates, sorted."""
        return sorted(self._pending)

    def pending_seconds(self) -> dict[str, float]:
        """For how long each of the closed gates has been closed."""
        now = self._clock()
        return {name: now - since for name, since in self._pending.items()}

    def opened(self, name: str) -> None:
        """Called by the gate."""
        if name not in self._pending:
            return
        del self._pending[name]
        elapsed = format_elapsed(self._clock() - self._began)
        if not self._pending:
            log.info("Task '%s' complete (%s), marking server ready", name, elapsed)
        else:
            left = len(self._pending)
            log.info("Task '%s' complete (%s), still awaiting %s tasks", name, elapsed, left)

    def closed(self, name: str) -> None:
        """Called by the gate."""
        self._pending.setdefault(name, self._clock())


def format_elapsed(seconds: float) -> str:
    """A short duration for people: `152.3ms`, `1.25s`, `87µs`; at most three decimals."""
    for size, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= size:
            return f"{seconds / size:.3f}".rstrip("0").rstrip(".") + unit
    return f"{seconds * 1e9:.0f}ns"
