"""A machine without files, for reading settings."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ztunnel_trio.config import Config, load
from ztunnel_trio.config.listeners import LOOPBACK_IPV6_FILE
from ztunnel_trio.config.resolver import RESOLV_CONF


@dataclass
class FakeMachine:
    """A machine of two CPUs with the files given, and the two every machine has."""

    files: dict[str, str] = field(default_factory=dict)
    failing: frozenset[str] = frozenset()
    cpus: int = 2

    def __post_init__(self) -> None:
        self.files = {RESOLV_CONF: "nameserver 10.96.0.10\n", LOOPBACK_IPV6_FILE: "0\n"} | self.files

    def read_text(self, path: str) -> str:
        if path in self.failing:
            raise PermissionError(13, "Permission denied")
        if path not in self.files:
            raise FileNotFoundError(2, "No such file or directory")
        return self.files[path]

    def exists(self, path: str) -> bool:
        return path in self.files

    def cpu_count(self) -> int:
        return self.cpus


def loaded(environ: Mapping[str, str] | None = None, files: dict[str, str] | None = None) -> Config:
    return load(environ or {}, FakeMachine(files or {}), ("proxy", "ztunnel"))
