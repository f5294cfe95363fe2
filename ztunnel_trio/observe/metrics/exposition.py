"""The OpenMetrics text of families, in pieces.

Label values keep the order of ztunnel src/proxy/metrics.rs, and integers are shown as integers: what
dashboards and tests read.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from ztunnel_trio.observe.metrics.families import Family

PIECE_CHARACTERS: Final = 32 * 1024  # rendered in about 0.2 ms


@dataclass(frozen=True, slots=True)
class RenderedFamily:
    """A family and its samples as text, made when they are read."""

    family: Family
    lines: Iterable[str]


def exposition(families: Iterable[RenderedFamily]) -> Iterator[bytes]:
    """HELP, TYPE, UNIT and samples of each family that has samples, then `# EOF`; some samples at a time.

    An empty line among a family's is none: there was much to look at and little to tell. The piece that
    ends there may be empty.
    """
    lines: list[str] = []
    size = 0
    for shown in families:
        is_first = True
        for line in shown.lines:
            if not line:
                yield encoded(lines)
                lines, size = [], 0
                continue
            if is_first:
                lines += head_lines(shown.family)
                is_first = False
            lines.append(line)
            size += len(line)
            if size >= PIECE_CHARACTERS:
                yield encoded(lines)
                lines, size = [], 0
    lines.append("# EOF")
    yield encoded(lines)


def encoded(lines: list[str]) -> bytes:
    return "".join([f"{line}\n" for line in lines]).encode("utf-8", "replace")


def head_lines(family: Family) -> list[str]:
    """What comes before a family's samples."""
    lines = [
        f"# HELP {family.name} {escape_help(family.text)}",
        f"# TYPE {family.name} {family.kind.value}",
    ]
    return [*lines, f"# UNIT {family.name} {family.unit}"] if family.unit else lines


def label_text(pairs: Iterable[tuple[str, str]]) -> str:
    """`{a="b",c="d"}` in the order given; nothing for no labels."""
    inner = ",".join([f'{name}="{escape_label(value)}"' for name, value in pairs])
    return f"{{{inner}}}" if inner else ""


def escape_label(value: str) -> str:
    """Backslash, double quote and newline escaped (OpenMetrics 1.0, escaping)."""
    if value.isalnum():
        return value
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def escape_help(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def number_text(value: float) -> str:
    """A number as short as it can be: an integer without a point."""
    return str(int(value)) if value == int(value) else float_text(value)


def float_text(value: float) -> str:
    """A float with its decimal point, never in scientific form."""
    return repr(value) if "e" not in repr(value) else f"{value:.9f}"
