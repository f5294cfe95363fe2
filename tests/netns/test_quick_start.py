"""The commands of the page `quick start`, in order, in a demo that is kept up."""

import shlex
import subprocess
import sys
from pathlib import Path

from tests.docs.blocks import blocks
from tests.netns.kept_demo import SECONDS, kept_demo, shell_environment

PROGRAM = [sys.executable, "-m", "ztunnel_trio"]
MARK = "test: quick start"


def test_the_quick_start_goes_as_the_page_says(tmp_path: Path) -> None:
    here = tmp_path / ".venv" / "bin" / "ztunnel-trio"  # where the page has it
    here.parent.mkdir(parents=True)
    here.write_text(f'#!/bin/sh\nexec {shlex.join(PROGRAM)} "$@"\n')
    here.chmod(0o755)

    with shell_environment() as environment, kept_demo(PROGRAM, environment, tmp_path / "out"):
        for command, comment in (pair for one in blocks() if one.mark == MARK for pair in one.commands()):
            done = subprocess.run(
                ["sh", "-c", command],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                timeout=SECONDS,
                check=False,
            )
            assert done.returncode == (1 if comment == "refused" else 0), (command, done.stdout, done.stderr)
            if comment == "refused":
                assert "node-1 outbound: http status: 401 Unauthorized\n" in done.stderr
                assert "explicitly denied by: default/keep-foo-out" in done.stderr

    assert '"workloads"' in (tmp_path / "dump.json").read_text()
