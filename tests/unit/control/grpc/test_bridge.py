"""trio-asyncio beside grpclib, on every CPython."""

import asyncio  # noqa: TID251  what is lent to it
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
GRPCLIB, ROOM = "import grpclib.client", "from ztunnel_trio.control.grpc import open_control_loop"
OPEN_IT = """
import trio
async def main():
    async with open_control_loop():
        print("open")
trio.run(main)
"""


def python(code: str, *paths: Path) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter, with directories in front of its path."""
    environ = {"PATH": os.defpath, "PYTHONPATH": os.pathsep.join(map(str, (*paths, ROOT)))}
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env=environ, timeout=60, check=False)


@pytest.mark.parametrize("imports", [(GRPCLIB, ROOM), (ROOM, GRPCLIB)], ids=["grpclib first", "room first"])
def test_a_loop_can_be_opened_whatever_was_imported_first(imports: tuple[str, str]) -> None:
    done = python("\n".join((*imports, OPEN_IT)))

    assert (done.returncode, done.stdout, done.stderr) == (0, "open\n", "")


def test_what_was_lent_to_asyncio_is_taken_back() -> None:
    import ztunnel_trio.control.grpc.bridge  # noqa: F401  # it has lent, if it ever does

    if sys.version_info >= (3, 14):
        assert "AbstractChildWatcher" not in vars(asyncio)
        assert "BaseDefaultEventLoopPolicy" not in vars(asyncio.events)
    else:
        assert asyncio.AbstractChildWatcher.__module__ == "asyncio.unix_events"


def test_a_trio_asyncio_that_cannot_be_imported_is_named(tmp_path: Path) -> None:
    tmp_path.joinpath("trio_asyncio.py").write_text("import asyncio; asyncio.policies_of_old\n")

    done = python(ROOM, tmp_path)

    last = done.stderr.splitlines()[-1]
    assert last.startswith("ztunnel_trio.errors.Unusable: cannot load trio-asyncio ")
    assert "on CPython 3." in last
    assert "policies_of_old" in last


def test_an_event_loop_whose_steps_are_no_tasks_is_named(tmp_path: Path) -> None:
    """What 3.12 and 3.13 had before the loop named itself: whoever asked C for the task was answered none."""
    told = python(
        "import asyncio\n"
        "def no_task(): raise RuntimeError('no running event loop')\n"
        "asyncio.current_task = no_task\n" + "\n".join((GRPCLIB, ROOM, OPEN_IT))
    )

    assert told.returncode == 1
    assert "ztunnel_trio.errors.Unusable: trio-asyncio " in told.stderr
    assert "is no task of the event loop: no running event loop" in told.stderr
