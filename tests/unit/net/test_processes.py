"""Processes by their network namespace, and one that is held."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ztunnel_trio.net.netns import Netns, NetnsKey
from ztunnel_trio.net.processes import (
    MOST_CANDIDATES,
    HeldProcess,
    may_look_into_others,
    netns_of,
    processes_by_netns,
    sees_other_processes,
)


@pytest.fixture
def child() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that ends when its input does."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        if process.stdin is not None:
            process.stdin.close()


def own_key() -> NetnsKey:
    netns = Netns.own()
    netns.close()
    return netns.key


def fake(proc: Path, pid: int, command: str, began: int, netns: Path) -> None:
    """One process of a made-up /proc."""
    (proc / str(pid) / "ns").mkdir(parents=True)
    (proc / str(pid) / "stat").write_text(f"{pid} ({command}) S " + "0 " * 18 + f"{began} 0")
    os.link(netns, proc / str(pid) / "ns" / "net")


def test_processes_are_found_by_their_namespace_the_oldest_first(tmp_path: Path) -> None:
    proc, pod, other = tmp_path / "proc", tmp_path / "pod", tmp_path / "other"
    pod.touch()
    other.touch()
    fake(proc, 30, "app", 5, pod)
    fake(proc, 20, "weird ) name", 9, pod)
    fake(proc, 10, "pause", 1, pod)
    fake(proc, 40, "elsewhere", 2, other)
    (proc / "self").mkdir()
    key = netns_of(30, proc)
    assert key is not None

    assert processes_by_netns(proc)[key] == [30, 20]


def test_a_namespace_full_of_processes_costs_a_few(tmp_path: Path) -> None:
    proc, pod = tmp_path / "proc", tmp_path / "pod"
    pod.touch()
    for pid in range(1, MOST_CANDIDATES + 10):
        fake(proc, pid, "app", pid, pod)

    assert [len(pids) for pids in processes_by_netns(proc).values()] == [MOST_CANDIDATES]


def test_our_own_namespace_has_us() -> None:
    assert netns_of(os.getpid()) == own_key()
    assert netns_of(2**22 + 1) is None


def test_a_held_process_is_where_it_is_until_it_ends(child: "subprocess.Popen[bytes]") -> None:
    with HeldProcess(child.pid) as held:
        assert held.is_in(own_key())
        assert not held.is_in(NetnsKey((1, 2)))
        assert not held.has_ended
        assert child.stdin is not None
        child.stdin.close()
        child.wait()

        assert held.has_ended
        assert not held.is_in(own_key())


def test_a_process_that_is_not_there_cannot_be_held() -> None:
    with pytest.raises(ProcessLookupError):
        HeldProcess(2**22 + 1)


def test_without_a_process_1_of_others_we_see_only_ourselves(tmp_path: Path) -> None:
    assert not sees_other_processes(tmp_path)


@pytest.mark.parametrize(("effective", "may"), [("000001fffeffffff", True), ("00000000a80435fb", False)])
def test_other_users_processes_are_looked_into_with_a_capability(
    effective: str, may: bool, tmp_path: Path
) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "status").write_text(f"Name:\tproxy\nCapEff:\t{effective}\nSeccomp:\t0\n")

    assert may_look_into_others(tmp_path) is may
