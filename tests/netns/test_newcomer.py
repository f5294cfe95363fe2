"""A newcomer's path, timed: clone, install, see it work, read why a call is refused, see it allowed.

The commands are those of the README. A package index has to be reachable, as for any `pip install`.
"""

import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT, blocks
from tests.netns.kept_demo import kept_demo, shell_environment

MOST_SECONDS = 180  # of the whole path


def commands_of(mark: str) -> list[tuple[str, str]]:
    """The README's commands under a mark, with their comments."""
    found = [block for block in blocks() if block.page == "README.md" and block.mark == mark]
    return [command for block in found for command in block.commands()]


@pytest.mark.skipif(shutil.which("git") is None, reason="a clone needs git")
def test_the_path_of_a_newcomer_takes_less_than_three_minutes(tmp_path: Path) -> None:
    with shell_environment() as environment:
        walk(tmp_path / "clone", tmp_path / "out", environment)


def walk(clone: Path, out: Path, environment: Mapping[str, str]) -> None:
    """Do it, hold each step to what the README says of it, and the whole to its time."""
    began = time.monotonic()
    transcript: list[str] = []

    def run(command: str) -> int:
        since = time.monotonic()
        done = subprocess.run(
            ["sh", "-c", command],
            cwd=clone,
            env=environment,
            capture_output=True,
            text=True,
            timeout=MOST_SECONDS,
            check=False,
        )
        transcript.append(f"$ {command}\n{done.stdout}{done.stderr}({time.monotonic() - since:.1f} s)\n")
        return done.returncode

    subprocess.run(["git", "-c", "safe.directory=*", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    for command, _ in commands_of("test: newcomer"):
        assert run(command) == 0, transcript[-1]
    assert "all as promised" in transcript[-1]

    with kept_demo([clone / ".venv/bin/ztunnel-trio"], environment, out):
        for command, comment in commands_of("test: newcomer, demo --keep"):
            is_refused = comment.startswith("refused")
            assert run(command) == (1 if is_refused else 0), transcript[-1]
            if is_refused:
                assert "explicitly denied by: default/keep-foo-out" in transcript[-1]
            elif comment == "allowed":
                assert "HTTP 200" in transcript[-1]

    seconds = time.monotonic() - began
    print("".join(transcript), f"the whole path: {seconds:.1f} s", sep="\n")  # noqa: T201  shown by -rP
    assert len(transcript) == 7
    assert seconds < MOST_SECONDS
