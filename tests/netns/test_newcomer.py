"""A newcomer's path, timed: clone, install, see it work, read why a call is refused, see it allowed.

The commands are those of the README. A package index has to be reachable, as for any `pip install`.
"""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT, blocks

MOST_SECONDS = 180  # of the whole path
STEP_SECONDS = 150


def commands_of(mark: str) -> list[tuple[str, str]]:
    """The README's commands under a mark, with their comments."""
    found = [block for block in blocks() if block.page == "README.md" and block.mark == mark]
    return [command for block in found for command in block.commands()]


@pytest.mark.skipif(shutil.which("git") is None, reason="a clone needs git")
def test_the_path_of_a_newcomer_takes_less_than_three_minutes(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(
        prefix="new-"
    ) as labs:  # sockets are in it: a path of pytest's is too long
        walk(tmp_path, labs)


def walk(tmp_path: Path, labs: str) -> None:
    """Do it, in a shell whose temporary files are in `labs`: no other mesh is found there."""
    began = time.monotonic()
    clone = tmp_path / "clone"
    inherited = os.environ  # noqa: TID251  the shell a newcomer has
    environment = {**inherited, "TMPDIR": labs, "PIP_ROOT_USER_ACTION": "ignore"}
    transcript: list[str] = []

    def run(command: str) -> subprocess.CompletedProcess[str]:
        since = time.monotonic()
        done = subprocess.run(
            ["sh", "-c", command],
            cwd=clone,
            env=environment,
            capture_output=True,
            text=True,
            timeout=STEP_SECONDS,
            check=False,
        )
        transcript.append(f"$ {command}\n{done.stdout}{done.stderr}({time.monotonic() - since:.1f} s)\n")
        return done

    subprocess.run(["git", "-c", "safe.directory=*", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    for command, _ in commands_of("test: newcomer"):
        assert run(command).returncode == 0, transcript[-1]
    assert "all as promised" in transcript[-1]

    with (tmp_path / "kept").open("wb") as out:
        kept = subprocess.Popen(
            [clone / ".venv/bin/ztunnel-trio", "demo", "--keep"],
            env=environment,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        while "Ctrl-C" not in (said := (tmp_path / "kept").read_text()):
            assert kept.poll() is None, said
            assert time.monotonic() - began < MOST_SECONDS, said
            time.sleep(0.1)
        for command, comment in commands_of("test: newcomer, demo --keep"):
            refused = comment.startswith("refused")
            assert run(command).returncode == (1 if refused else 0), transcript[-1]
            if refused:
                assert "explicitly denied by: default/keep-foo-out" in transcript[-1]
            elif comment == "allowed":
                assert "HTTP 200" in transcript[-1]
    finally:
        kept.send_signal(signal.SIGINT)
        assert kept.wait(30) == 0

    seconds = time.monotonic() - began
    print("".join(transcript), f"the whole path: {seconds:.1f} s", sep="\n")  # noqa: T201  shown by -rP
    assert len(transcript) == 7
    assert seconds < MOST_SECONDS
