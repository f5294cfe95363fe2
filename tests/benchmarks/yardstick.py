"""The yardstick of every benchmark: rounds, a second build beside this one, ratios with their spread.

    python -m tests.benchmarks.NAME [--rounds 5] [--beside COMMAND [--itself]] [--json FILE] [its own options]

COMMAND is another build's `ztunnel-trio`: another checkout's, or this one's in the environment of another
interpreter. A benchmark is a function that makes one round and returns figures by name. A second build's
rounds alternate with this one's, each in a process of its own, and the order changes from round to round;
`datapath` and `control` start the second build's proxies instead, in a lab of this build's.

A ratio is always one of costs, this build's to the other's: 1.10 is a tenth worse, also where the figure is a
rate. It stands with the lowest and the highest of the rounds. *Not worse* means: the median of five rounds'
ratios is at most `NOT_WORSE`, or within the spread of this build against itself, which `--itself` measures in
the same run. On a busy machine believe processor time, and the clock only where both agree.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from rich import box
from rich.console import Console
from rich.table import Table

NOT_WORSE: Final = 1.03
ENOUGH_ROUNDS: Final = 5  # to say so
ROOT: Final = Path(__file__).parents[2]
Figures = dict[str, float]
Series = dict[str, list[float]]
"""A figure's values, one a round. A name with `per_second` in it is a rate: more is better."""


@dataclass(frozen=True, slots=True)
class Build:
    """A build to be measured: its interpreter, where its code is, and the command that starts its proxy."""

    name: str
    python: str
    root: Path
    version: str
    proxy: tuple[str, ...]

    @classmethod
    def of(cls, name: str, python: str) -> "Build":
        """The build that an interpreter imports.

        Raises:
            SystemExit: none.
        """
        code = "import sys, ztunnel_trio; print(ztunnel_trio.__path__[0]); print(sys.version.split()[0])"
        outside = without_pythonpath()
        asked = [python, "-c", code]
        done = subprocess.run(asked, capture_output=True, text=True, cwd="/", env=outside, check=False)
        if done.returncode:
            sys.exit(f"{python} has no ztunnel_trio: {done.stderr.strip().splitlines()[-1]}")
        package, version = done.stdout.splitlines()
        proxy = ("env", "-u", "PYTHONPATH", python, "-m", "ztunnel_trio", "proxy", "ztunnel")
        return cls(name, python, Path(package).parent, version, proxy)

    def __str__(self) -> str:
        return f"{self.name}: {self.root}, CPython {self.version}"

    def round(self, benchmark: str, options: Sequence[str]) -> Figures:
        """One round in a process of its own: this checkout's benchmark with the build's package.

        Where that cannot be, as names have moved, it is the build's own benchmark of that name.

        Raises:
            SystemExit: neither runs.
        """
        told = []
        for tests in (ROOT / "tests", self.root / "tests"):
            if not (tests / "benchmarks" / Path(__file__).name).exists():
                continue  # older than the yardstick
            with tempfile.TemporaryDirectory() as place:
                Path(place, "tests").symlink_to(tests)
                done = subprocess.run(
                    [self.python, "-m", benchmark, "--one-round", *options],
                    capture_output=True,
                    text=True,
                    cwd=place,
                    env=without_pythonpath(),
                    check=False,
                )
            if not done.returncode:
                figures: Figures = json.loads(done.stdout.splitlines()[-1])
                return figures
            told.append(done.stderr)
        sys.exit("\n".join((*told, f"{benchmark} does not run with the build {self}")))


def without_pythonpath() -> dict[str, str]:
    """This environment without what would put this checkout before an interpreter's own packages."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # noqa: TID251  handed on


def python_of(command: str) -> str:
    """The interpreter beside a `ztunnel-trio` in its environment's `bin`."""
    found = shutil.which(command)
    if found is None:
        sys.exit(f"no such command: {command}")
    return str(Path(found).absolute().parent / "python")


@dataclass(slots=True)
class Rounds:
    """What was asked for, and the figures so far, by build."""

    count: int
    builds: list[Build]
    json_path: Path | None
    series: dict[str, Series] = field(default_factory=dict)

    def order(self) -> Generator[Build, None, None]:
        """Every build, as often as there are rounds; who comes first changes."""
        for number in range(self.count):
            for build in self.builds if number % 2 == 0 else reversed(self.builds):
                sys.stderr.write(f"round {number + 1} of {self.count}: {build.name}\n")
                yield build

    def note(self, name: str, figures: Mapping[str, float]) -> None:
        """Take a round's figures of a build."""
        series = self.series.setdefault(name, {})
        for figure, value in figures.items():
            series.setdefault(figure, []).append(value)

    def finish(self, title: str | None = None) -> None:
        """Show the medians and the ratios, and write every figure of every round."""
        show(self.series, title)
        if self.json_path is not None:
            self.json_path.write_text(json.dumps(self.series, indent=1))


def cost_ratios(figure: str, mine: Sequence[float], other: Sequence[float]) -> list[float]:
    """Round by round what the first costs of the second; of a rate its inverse."""
    pairs = [(b, a) if "per_second" in figure else (a, b) for a, b in zip(mine, other, strict=False)]
    return [above / below for above, below in pairs if below]


def is_worse(ratios: Sequence[float], itself: Sequence[float]) -> bool:
    """By the rule of the module's text."""
    by_chance = max(max(itself), 1 / min(itself)) if itself else 1.0
    return len(ratios) >= ENOUGH_ROUNDS and statistics.median(ratios) > max(NOT_WORSE, by_chance)


def show(series: Mapping[str, Series], title: str | None = None) -> None:
    """Medians of every build, the first one's ratios to the others, and the spread of the rounds."""
    table = Table(box=box.SIMPLE, title=title)
    first, *others = series
    table.add_column("figure")
    table.add_column(first, justify="right")
    for name in others or ("lowest", "highest"):
        table.add_column(name, justify="right")
    for name in others:
        table.add_column(f"{first} / {name}", justify="right")
    for figure, mine in series[first].items():
        row = [figure.replace("_", " "), f"{statistics.median(mine):.4g}"]
        if not others:
            row += [f"{min(mine):.4g}", f"{max(mine):.4g}"]
        found = {name: series[name].get(figure, []) for name in others}
        row += [f"{statistics.median(values):.4g}" if values else "" for values in found.values()]
        ratios = {name: cost_ratios(figure, mine, values) for name, values in found.items()}
        for name, values in ratios.items():
            row.append(spread(values, ratios.get(ITSELF, []), judged=name == BESIDE))
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 130).print(table)


def spread(ratios: Sequence[float], itself: Sequence[float], *, judged: bool) -> str:
    """The median of some ratios, the lowest and the highest, and whether that is worse."""
    if not ratios:
        return ""
    mark = " worse" if judged and is_worse(ratios, itself) else ""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}){mark}"


THIS, ITSELF, BESIDE = "this", "itself", "beside"


def parser_of_rounds(rounds: int) -> argparse.ArgumentParser:
    """The options that every benchmark has; a parent of its own parser."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--beside", metavar="COMMAND", help="another build's ztunnel-trio")
    parser.add_argument("--itself", action="store_true", help="this build twice, for its own spread")
    parser.add_argument("--json", type=Path, help="write every figure of every round there")
    return parser


def rounds_of(chosen: argparse.Namespace) -> Rounds:
    """The rounds that were asked for by the options of `parser_of_rounds`."""
    builds = [Build.of(THIS, sys.executable)]
    if chosen.beside:
        builds.append(Build.of(BESIDE, python_of(chosen.beside)))
    if chosen.itself:
        builds.append(Build.of(ITSELF, sys.executable))
    if len(builds) > 1:
        sys.stderr.write("".join(f"{build}\n" for build in builds))
    return Rounds(chosen.rounds, builds, chosen.json)


def run(
    parser: argparse.ArgumentParser, measure: Callable[[argparse.Namespace], Figures], *, rounds: int = 5
) -> None:
    """The program of a benchmark that makes a round within its own process.

    `parser` has the benchmark's own options; figures are what `measure` returns of one round.
    """
    common = parser_of_rounds(rounds)
    common.add_argument("--one-round", action="store_true", help=argparse.SUPPRESS)
    whole = argparse.ArgumentParser(
        parents=[parser, common],
        add_help=True,
        description=parser.description,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    chosen = whole.parse_args()
    if chosen.one_round:
        sys.stdout.write("\n" + json.dumps(measure(chosen)) + "\n")
        return
    _, own = common.parse_known_args()
    asked = rounds_of(chosen)
    benchmark = sys.modules["__main__"].__spec__
    assert benchmark is not None
    for build in asked.order():
        asked.note(build.name, build.round(benchmark.name, own))
    asked.finish()


def options(description: str | None) -> argparse.ArgumentParser:
    """A parser for a benchmark's own options, to be handed to `run`."""
    return argparse.ArgumentParser(description=description, add_help=False)


@dataclass(slots=True)
class Took:
    """How long a block took, by the clock and of this process's processor time."""

    wall: float = 0.0
    cpu: float = 0.0


@contextmanager
def stopwatch() -> Generator[Took, None, None]:
    """Time the body."""
    took = Took()
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        yield took
    finally:
        took.wall, took.cpu = time.perf_counter() - wall, time.process_time() - cpu


def cpu_seconds(pid: int) -> float:
    """Processor time of another process and all its threads so far, by the kernel's clock for it.

    clock_getcpuclockid(3): the id of that clock is made of the process's (Linux, posix-timers_types.h).
    """
    return time.clock_gettime(~pid << 3 | 2)
