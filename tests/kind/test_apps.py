"""The workshop's applications on loopback."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.kind.checks import CHAIN

APP = Path(__file__).parent / "app"


def client(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", str(APP / "client.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def is_open(port: int) -> bool:
    with socket.socket() as asking:
        return asking.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def front() -> Iterator[str]:
    """The chain, each service a process; the first one's URL."""
    ports = free_ports(len(CHAIN))
    urls = [f"http://127.0.0.1:{port}/" for port in ports]
    processes = []
    for name, port, upstream in zip(CHAIN, ports, [*urls[1:], ""], strict=True):
        settings = {**os.environ, "NAME": name, "PORT": str(port), "UPSTREAM": upstream}  # noqa: TID251
        command = [sys.executable, "-I", str(APP / "hello.py")]
        processes.append(subprocess.Popen(command, env=settings, stderr=subprocess.DEVNULL))
    try:
        end = time.monotonic() + 20
        for port in ports:
            while not is_open(port):
                assert time.monotonic() < end
                time.sleep(0.05)
        yield urls[0]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_the_chain_answers_with_every_name(front: str) -> None:
    done = client("get", front)

    assert done.returncode == 0, done.stderr
    last = {"name": CHAIN[2]}
    assert json.loads(done.stdout) == {"name": CHAIN[0], "upstream": {"name": CHAIN[1], "upstream": last}}


def test_a_call_without_an_answer_fails_and_says_where() -> None:
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}/"

    done = client("get", url)

    assert done.returncode == 1
    assert url in done.stderr


def test_a_name_is_resolved_or_not() -> None:
    assert "127.0.0.1" in client("resolve", "localhost").stdout
    assert client("resolve", "no-such-name.invalid").returncode == 1
