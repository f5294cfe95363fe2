"""A proxy as a process of its own: started in its node's namespace, watched, stopped, measured."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

import h11
import trio

from ztunnel_trio.facts.network import ADMIN_PORT, READINESS_PORT, STATS_PORT
from ztunnel_trio.lab import http
from ztunnel_trio.lab.hosts import Host
from ztunnel_trio.lab.proxy_log import ProxyLog
from ztunnel_trio.model.address import SocketAddress

_POLL_SECONDS: Final = 0.02
_HTTP_SECONDS: Final = 10.0
_KILL_SECONDS: Final = 5.0
PID_FILE: Final = "proxy.pid"
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PACKAGE_ROOT: Final = str(Path(__file__).parents[2])


class ProxyFailed(Exception):
    """The proxy ended or did not become ready; the text holds the end of its log."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process has used so far, or holds now."""

    cpu_seconds: float
    resident_bytes: int
    descriptors: int
    threads: int


def default_command() -> list[str]:
    """The proxy of this very package."""
    return [sys.executable, "-m", "ztunnel_trio", "proxy", "ztunnel"]


class ProxyProcess:
    """One run of a proxy. Its standard output and error go to `log`.

    Its command either becomes the proxy, or starts it and writes who that is into `PID_FILE` of the directory
    it finds itself in, as a runtime of containers does. Signals go to the command, which passes them on.
    """

    def __init__(
        self, host: Host, directory: Path, *, command: Sequence[str], environment: Mapping[str, str]
    ):
        self.host = host
        self.command = list(command)
        self.environment = dict(environment)
        self.log = ProxyLog(directory / "proxy.log")
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The proxy's own, which need not be that of the command."""
        assert self._process is not None
        told = self._directory / PID_FILE
        return int(told.read_text()) if told.exists() else self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def returncode(self) -> int | None:
        """None while it runs or has never been started; negative for a signal."""
        return None if self._process is None else self._process.poll()

    def start(self, *, resolv: Path | None = None) -> None:
        """Start it; `resolv` becomes its /etc/resolv.conf.

        Deliberately on the caller's thread: the kernel ties the child's life to the thread that made it
        (PR_SET_PDEATHSIG), and Trio's worker threads come and go.

        Raises:
            OSError: it cannot be started.
        """
        (self._directory / PID_FILE).unlink(missing_ok=True)
        launcher = [sys.executable, "-m", "ztunnel_trio.lab.launch"]
        place = [str(os.getpid()), str(self.host.netns.fileno()), str(resolv) if resolv else "-"]
        environment = {
            **_inherited(),
            "PYTHONPATH": os.pathsep.join(filter(None, [_PACKAGE_ROOT, _inherited().get("PYTHONPATH", "")])),
            **self.environment,
        }
        with self.log.path.open("ab") as log:
            self._process = subprocess.Popen(
                [*launcher, *place, *self.command],
                cwd=self._directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[self.host.netns.fileno()],
            )

    async def wait_ready(self) -> None:
        """Wait until the readiness port answers 200; the caller sets the deadline.

        Raises:
            ProxyFailed: the process ended first.
        """
        while True:
            if not self.is_running:
                raise ProxyFailed(
                    f"the proxy of {self.host.name} exited with {self.returncode}:\n{self._tail()}"
                )
            if await self.ready() == 200:
                return
            await trio.sleep(_POLL_SECONDS)

    async def ready(self) -> int | None:
        """The readiness port's status, None when nobody answers there."""
        try:
            return (await self.get(READINESS_PORT, "/healthz/ready")).status
        except (OSError, trio.TooSlowError, trio.BrokenResourceError, h11.RemoteProtocolError):
            return None

    async def get(
        self, port: int, path: str, *, method: str = "GET", headers: Mapping[str, str] | None = None
    ) -> http.HttpAnswer:
        """Ask one of the proxy's own servers, from inside its namespace, ten seconds at most.

        Raises:
            OSError, TooSlowError, BrokenResourceError, RemoteProtocolError: no answer.
        """
        target = SocketAddress(IPv4Address("127.0.0.1"), port)
        with trio.fail_after(_HTTP_SECONDS):
            async with await self.host.connect(target) as stream:
                return await http.fetch(stream, path, method=method, headers=headers)

    async def admin(self, path: str, *, method: str = "GET") -> http.HttpAnswer:
        """Ask the admin server; errors as `get`."""
        return await self.get(ADMIN_PORT, path, method=method)

    async def metrics(self) -> str:
        """The statistics in Prometheus text form; errors as `get`."""
        return (await self.get(STATS_PORT, "/stats/prometheus")).text

    async def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; the caller sets the deadline. Returns the exit code."""
        assert self._process is not None
        if self.is_running:
            self._process.send_signal(number)
        while (code := self._process.poll()) is None:  # noqa: ASYNC110  its end raises no event
            await trio.sleep(_POLL_SECONDS)
        return code

    def kill(self) -> None:
        """End it at once, if it still runs."""
        if self._process is not None and self._process.poll() is None:
            os.kill(self.pid, signal.SIGKILL)  # a command that is not the proxy ends with it
            self._process.wait(_KILL_SECONDS)

    def usage(self) -> Usage:
        """What it uses, from /proc.

        Raises:
            OSError: it has ended.
        """
        base = Path(f"/proc/{self.pid}")
        times = base.joinpath("stat").read_text().rpartition(")")[2].split()
        status = base.joinpath("status").read_text()
        fields = {
            name: text.strip() for name, _, text in (line.partition(":") for line in status.splitlines())
        }
        return Usage(
            cpu_seconds=(int(times[11]) + int(times[12])) / _TICKS,
            resident_bytes=int(fields["VmRSS"].split()[0]) * 1024,
            descriptors=len(os.listdir(base / "fd")),
            threads=int(fields["Threads"]),
        )

    def _tail(self) -> str:
        return "\n".join(self.log.raw()[-20:])


def _inherited() -> dict[str, str]:
    """What a proxy may know of the lab's environment: how to find Python and nothing that configures it."""
    names = ("PATH", "HOME", "LANG", "PYTHONPATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "COVERAGE_PROCESS_START")
    environment = os.environ  # noqa: TID251  handed on, not read
    return {name: environment[name] for name in names if name in environment}
