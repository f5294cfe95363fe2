"""The demo as people run it: the whole program, its exit code, and what it leaves behind."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trio

from tests.fakes.trio_test import trio_test
from ztunnel_trio.lab import demo
from ztunnel_trio.lab.mesh import LabSettings
from ztunnel_trio.lab.proxy_process import ProxyFailed
from ztunnel_trio.lab.report import PlainTeller

PROGRAM = [sys.executable, "-m", "ztunnel_trio"]
SECONDS = 30


def run_program(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, *arguments], capture_output=True, text=True, timeout=SECONDS, check=False
    )


def test_the_demo_keeps_its_promises_within_its_time() -> None:
    began = time.monotonic()
    done = run_program("demo")

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert "FAIL" not in done.stdout
    assert "all as promised" in done.stdout
    assert time.monotonic() - began < SECONDS


def test_a_kept_demo_can_be_looked_into_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as out:
        process = subprocess.Popen([*PROGRAM, "demo", "--keep"], stdout=out, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + SECONDS
        while "Ctrl-C" not in (said := (tmp_path / "out").read_text()):
            assert process.poll() is None, said
            assert time.monotonic() < end, said
            time.sleep(0.05)

        mesh = ("lab", "--pid", str(process.pid))
        assert "web-api" in run_program(*mesh, "list").stdout
        assert "HTTP 200" in run_program(*mesh, "call", "node-1", "127.0.0.1:15021", "/healthz/ready").stdout
        assert "HTTP 200" in run_program(*mesh, "call", "sleep", "web-api").stdout
        refused = run_program(*mesh, "call", "client", "web-api")
        assert refused.returncode == 1
        assert "node-2 inbound: " in refused.stderr
        assert "explicitly denied by: default/keep-foo-out" in refused.stderr
        broken = Path(run_program(*mesh, "policy", "list").stdout.split()[1])
        broken.write_text(broken.read_text().replace("DENY", "NEVER"))  # an editor's mistake changes nothing
        assert run_program(*mesh, "call", "client", "web-api").returncode == 1
        assert "NEVER" in run_program(*mesh, "policy", "delete", "keep-foo-out").stderr
        broken.write_text(broken.read_text().replace("NEVER", "DENY"))
        assert run_program(*mesh, "policy", "delete", "keep-foo-out").returncode == 0
        assert "HTTP 200" in run_program(*mesh, "call", "client", "web-api").stdout
        shown = run_program(*mesh, "exec", "sleep", "cat", "/proc/net/tcp6")
        assert f":{15008:04X} " in shown.stdout
        assert "there are" in run_program(*mesh, "exec", "nobody", "true").stderr
    finally:
        process.send_signal(signal.SIGINT)
        code = process.wait(SECONDS)

    assert code == 0
    assert run_program("lab", "--pid", str(process.pid), "list").returncode == 1


@trio_test
async def test_a_proxy_that_ends_at_once_is_said_so() -> None:
    settings = LabSettings(command=[sys.executable, "-c", "raise SystemExit('cannot work like this')"])

    with pytest.RaisesGroup(
        pytest.RaisesExc(ProxyFailed, match="cannot work like this"),
        flatten_subgroups=True,
    ):
        await demo.run(PlainTeller(io.StringIO()), settings=settings)


@trio_test
async def test_a_proxy_that_never_becomes_ready_is_given_up_and_killed() -> None:
    settings = LabSettings(command=[sys.executable, "-c", "import time; time.sleep(60)"], ready_seconds=1.0)
    before = set(os.listdir("/proc"))

    with pytest.RaisesGroup(trio.TooSlowError, flatten_subgroups=True):
        await demo.run(PlainTeller(io.StringIO()), settings=settings)

    started = [pid for pid in set(os.listdir("/proc")) - before if pid.isdigit()]
    assert not [pid for pid in started if _command_of(pid).endswith("time.sleep(60)\0")]


def _command_of(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
