"""Prints the reference page of metrics: `python -m ztunnel_trio.observe.metrics > docs/reference/metrics.md`.

With `--check FILE` the command fails when the file differs.
"""

import sys
from collections.abc import Sequence
from typing import Final

from ztunnel_trio.observe.metrics.families import TABLE, Present
from ztunnel_trio.observe.metrics.labels import TRAFFIC_LABELS

HEAD: Final = """\
# Metrics

At `/metrics` and `/stats/prometheus` of the stats port (15020), as OpenMetrics text. A counter's sample has
`_total` behind its name. Families of the process and its event loop come first: `process_open_fds`,
`process_max_fds`, `tokio_*` (one worker: there is one event loop) and `event_loop_hold_seconds`, how long the
loop worked before it looked at the network again.

A family is shown once it has a sample. Label sets that peers can write are bounded: one that has not moved
for a quarter of an hour and has no open connection is forgotten, all its families together; where there are
too many, new ones are counted on one series whose labels are `overflow`. Values longer than 512 characters
are cut.

| Family | Type | Labels | Meaning |
|---|---|---|---|
"""


def reference() -> str:
    """The Markdown page of the table."""
    rows = []
    for family in TABLE:
        labels = "those of a connection" if family.labels == TRAFFIC_LABELS else ", ".join(
            f"`{label}`" for label in family.labels
        )  # fmt: skip
        where = "" if family.present is Present.ALWAYS else f" Only {family.present.value}."
        text = family.text.replace(" (unstable)", "")
        rows.append(f"| `{family.name}` | {family.kind.value} | {labels} | {text}{where} |\n")
    labels = ", ".join(f"`{label}`" for label in TRAFFIC_LABELS)
    return f"{HEAD}{''.join(rows)}\nThe labels of a connection: {labels}.\n"


def main(arguments: Sequence[str]) -> int:
    """Print the page, or with `--check FILE` say whether the file is up to date."""
    page = reference()
    if arguments[:1] != ["--check"]:
        sys.stdout.write(page)
        return 0
    with open(arguments[1], encoding="utf-8") as file:
        if file.read() == page:
            return 0
    sys.stderr.write(f"{arguments[1]} is out of date: nox -s docs\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
