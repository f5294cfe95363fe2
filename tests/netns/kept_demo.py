"""A demo that is kept up as a process of its own, in a temporary directory where no other mesh is found."""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

SECONDS = 60


@contextmanager
def shell_environment() -> Iterator[dict[str, str]]:
    """The environment of a shell whose labs are its own. Sockets lie in it, so its path is short."""
    with tempfile.TemporaryDirectory(prefix="lab-") as labs:
        inherited = os.environ  # noqa: TID251  the shell a reader has
        yield {**inherited, "TMPDIR": labs, "PIP_ROOT_USER_ACTION": "ignore"}


@contextmanager
def kept_demo(program: Sequence[str | Path], environment: Mapping[str, str], out: Path) -> Iterator[None]:
    """`demo --keep` for the body's time, from where it says what to type next; then Ctrl-C, which ends it."""
    with out.open("wb") as file:
        process = subprocess.Popen(
            [*program, "demo", "--keep"], env=environment, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        end = time.monotonic() + SECONDS
        while "Ctrl-C" not in (said := out.read_text()):
            assert process.poll() is None, said
            assert time.monotonic() < end, said
            time.sleep(0.05)
        yield
    finally:
        process.send_signal(signal.SIGINT)
        code = process.wait(SECONDS)
    assert code == 0, out.read_text()
