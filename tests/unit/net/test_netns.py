"""Namespaces as descriptors; entering them needs root and is tested in tests/netns."""

import os
import threading

import pytest

from ztunnel_trio.net import netns as netns_module
from ztunnel_trio.net.netns import Netns


def test_a_namespace_is_known_by_device_and_inode() -> None:
    one, other = Netns.own(), Netns.open("/proc/self/ns/net")
    status = os.fstat(one.fileno())

    assert one.key == (status.st_dev, status.st_ino)
    assert one == other
    assert len({one, other}) == 1
    assert one.is_network_namespace()
    assert not os.get_inheritable(one.fileno())
    one.close()
    other.close()


def test_different_files_are_different_namespaces() -> None:
    own, null = Netns.own(), Netns.open("/dev/null")

    assert own != null
    assert not null.is_network_namespace()
    own.close()
    null.close()


def test_closing_twice_closes_nobody_elses_descriptor() -> None:
    netns = Netns.own()
    number = netns.fileno()
    netns.close()
    reused = os.open("/dev/null", os.O_RDONLY)
    assert reused == number

    netns.close()

    os.fstat(reused)
    assert netns.fileno() == -1
    assert "closed" in repr(netns)
    os.close(reused)


def test_adopting_something_closed_fails_and_owns_nothing() -> None:
    number = os.open("/dev/null", os.O_RDONLY)
    os.close(number)
    with pytest.raises(OSError, match="Bad file descriptor"):
        Netns.adopt(number)


def test_there_must_be_a_file() -> None:
    with pytest.raises(FileNotFoundError):
        Netns.open("/var/run/netns/no-such-pod")


def test_a_thread_that_ends_leaves_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netns_module, "_setns", lambda fd: None)  # what setns itself does needs privileges
    own = Netns.own()

    def visit() -> None:
        with own.inside():
            pass

    visit()
    before = len(os.listdir("/proc/self/fd"))
    thread = threading.Thread(target=visit)
    thread.start()
    thread.join()

    assert len(os.listdir("/proc/self/fd")) == before
    own.close()
