"""What loading settings asks of the machine beside the environment."""

import math
import os
from pathlib import Path
from typing import Protocol


class Machine(Protocol):
    """What `load` asks of the machine beside the environment."""

    def read_text(self, path: str) -> str:
        """A file's text.

        Raises:
            OSError: it cannot be read; FileNotFoundError when there is none.
        """
        ...

    def exists(self, path: str) -> bool: ...

    def cpu_count(self) -> int: ...


class ThisMachine:
    """The machine we run on."""

    def read_text(self, path: str) -> str:
        return Path(path).read_text(encoding="utf-8", errors="replace")

    def exists(self, path: str) -> bool:
        try:
            return Path(path).exists()
        except (OSError, ValueError):  # a PEM text is no path: too long, or with NUL
            return False

    def cpu_count(self) -> int:
        """CPUs this process may use: the affinity mask, and the cgroup's quota where there is one."""
        count = len(os.sched_getaffinity(0))
        try:
            quota, period = self.read_text("/sys/fs/cgroup/cpu.max").split()
            return max(1, min(count, math.ceil(int(quota) / int(period))))
        except (OSError, ValueError):  # cgroup v1, or `max`
            return count
