"""Where a secret or a set of trust anchors comes from: a file that may change, a text, the system's store."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class FromFile:
    """A file, read again whenever its content is needed."""

    path: str


@dataclass(frozen=True, slots=True)
class Literal:
    """The content itself, out of the configuration."""

    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class SystemRoots:
    """The operating system's trust anchors."""


TokenSource = FromFile | Literal
RootSource = FromFile | Literal | SystemRoots
