"""How commands are run: told first, then done, or only told."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
_SECONDS: Final = 600


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended."""

    code: int
    output: str
    errors: str = ""


class CommandFailedError(Exception):
    """A command that has to succeed did not."""


Run = Callable[[Sequence[str]], Done]


def real(command: Sequence[str]) -> Done:
    """Run it in the project's directory; ten minutes at most."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=_SECONDS, check=False)
    return Done(done.returncode, done.stdout, done.stderr)


@dataclass(slots=True, eq=False)
class Shell:
    """Runs commands; without `run` it only tells them."""

    run: Run | None = real
    told: list[tuple[str, ...]] = field(default_factory=list)

    @property
    def is_dry(self) -> bool:
        return self.run is None

    def ask(self, *command: str) -> Done:
        """What becomes of a command; nothing, and success, where it is only told."""
        sys.stdout.write(f"$ {' '.join(command)}\n")
        self.told.append(command)
        return Done(0, "") if self.run is None else self.run(command)

    def do(self, *command: str) -> str:
        """Its output.

        Raises:
            CommandFailedError: it failed.
        """
        done = self.ask(*command)
        if done.code:
            raise CommandFailedError(
                f"{' '.join(command)}: exit code {done.code}\n{done.output}{done.errors}"
            )
        return done.output
