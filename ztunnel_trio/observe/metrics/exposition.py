"""The OpenMetrics text of families.

prometheus-client's own exposition sorts labels by name and shows integers as floats; what dashboards
and tests read keeps the order of ztunnel src/proxy/metrics.rs, so this one is ours.
"""

from collections.abc import Iterable

from prometheus_client.metrics_core import Metric


class RenderedFamily(Metric):
    """A family whose samples exist as text already."""

    def __init__(self, name: str, documentation: str, lines: list[str], kind: str = "counter") -> None:
        super().__init__(name, documentation, kind)
        self.lines = lines


def single(name: str, documentation: str, kind: str, value: int) -> Metric:
    """A family of one sample without labels."""
    family = Metric(name, documentation, kind)
    family.add_sample(name, {}, value)
    return family


def exposition(families: Iterable[Metric]) -> str:
    """OpenMetrics text: HELP, TYPE, UNIT and samples of each family that has samples, then `# EOF`."""
    lines: list[str] = []
    for family in families:
        if isinstance(family, RenderedFamily):
            samples = family.lines
        else:
            samples = [sample_text(family, sample.name, sample.labels, sample.value)
                       for sample in family.samples if not sample.name.endswith("_created")]  # fmt: skip
        if samples:
            lines.append(f"# HELP {family.name} {escape_help(family.documentation)}")
            lines.append(f"# TYPE {family.name} {family.type}")
            if family.unit:
                lines.append(f"# UNIT {family.name} {family.unit}")
            lines += samples
    lines.append("# EOF\n")
    return "\n".join(lines)


def sample_text(family: Metric, name: str, labels: dict[str, str], value: float) -> str:
    """One sample; of a histogram the sum is a float and `le` comes first."""
    pairs = list(labels.items())
    if family.type == "histogram":
        pairs.sort(key=lambda pair: pair[0] != "le")
    is_float = name.endswith("_sum") and family.type == "histogram"
    shown = float_text(value) if is_float or value != int(value) else str(int(value))
    return f"{name}{label_text(pairs)} {shown}"


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


def float_text(value: float) -> str:
    """A float with its decimal point, never in scientific form."""
    return repr(value) if "e" not in repr(value) else f"{value:.9f}"
