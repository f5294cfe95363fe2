"""SIGTERM and SIGINT while the proxy is still loading: it ends at once, and cleanly."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ztunnel_trio.config.mesh_file import MESH_FILE
from ztunnel_trio.early_signals import ENDING

ROOT = Path(__file__).parents[2]
SECONDS = 20.0
FIRST_IMPORT = "ztunnel_trio.observe.log"


@contextlib.contextmanager
def loading(place: Path, *options: str, **environ: str) -> Iterator[subprocess.Popen[bytes]]:
    """A proxy under an interpreter with these options, ended with the body should it still be there."""
    command = [sys.executable, *options, "-m", "ztunnel_trio", "proxy"]
    base = {"PATH": os.defpath, "PYTHONPATH": str(ROOT), "XDS_ADDRESS": "", "FAKE_CA": "true", **environ}
    process = subprocess.Popen(command, cwd=place, env=base, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def barrier(path: Path) -> Path:
    """A file nobody can read on from: the process stops there until its other end is written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)
    return path


def has_come_to(path: Path) -> int:
    """Wait for the process to open a barrier; the other end, which keeps it there."""
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            return os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # nobody has opened it
            assert time.monotonic() < deadline
            time.sleep(0.01)


def end_of(process: subprocess.Popen[bytes], path: Path) -> tuple[int, bool]:
    """Its exit code, and whether it left without a word of complaint.

    The barrier is open from now on: a signal just before a system call is not seen until that returns.
    """
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            _, told = process.communicate(timeout=0.05)
        except subprocess.TimeoutExpired:
            assert time.monotonic() < deadline
            with contextlib.suppress(OSError):  # it has not come there
                os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
        else:
            return process.returncode, b"Traceback" not in told and b"Error" not in told


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_among_the_imports_is_a_clean_end(number: signal.Signals, tmp_path: Path) -> None:
    path = barrier(tmp_path / MESH_FILE)  # it gets no further, however late we are
    with loading(tmp_path, "-X", "importtime") as process:
        assert process.stderr is not None
        while FIRST_IMPORT not in (line := process.stderr.readline().decode()):
            assert line, "it ended before"

        process.send_signal(number)

        assert end_of(process, path) == (0, True)


@pytest.mark.parametrize("number", ENDING)
@pytest.mark.parametrize("name", [MESH_FILE, "mesh.yaml"], ids=["settings are read", "parts are built"])
def test_a_signal_while_something_is_waited_for_is_a_clean_end(
    number: signal.Signals, name: str, tmp_path: Path
) -> None:
    path = barrier(tmp_path / name)
    with loading(tmp_path, LOCAL_XDS_PATH="mesh.yaml") as process:
        held = has_come_to(path)
        process.send_signal(number)
        os.close(held)

        assert end_of(process, path) == (0, True)
