"""How a workload is named to an agent of SPIRE."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BySelectors:
    """What is known of the workload: (type, value) pairs; more than an entry asks for does no harm."""

    selectors: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class ByProcess:
    """A process of the workload, which the agent attests itself."""

    pid: int


@dataclass(frozen=True, slots=True)
class ByPod:
    """A pod of Kubernetes: its uid, and the key that must agree with it."""

    uid: str
    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class ByCalling:
    """The workload is we: the agent attests who calls."""


Reference = BySelectors | ByProcess | ByPod | ByCalling
