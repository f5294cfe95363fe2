"""Sockets made ahead: how many, and when. In namespaces: tests/netns/test_sockets.py."""

import errno
import gc
import os
import resource
import socket
from collections.abc import Generator
from contextlib import contextmanager

import pytest

from ztunnel_trio.net.spares import MOST, QUICK_SECONDS, Spares


def descriptors() -> int:
    """How many this process has open, without what earlier tests left to the collector."""
    gc.collect()
    return len(os.listdir("/dev/fd"))


class Trips:
    """Counts the trips, and refuses them once the namespace is gone."""

    def __init__(self) -> None:
        self.count = 0
        self.is_gone = False
        self.prepared = 0
        self.refuses = False
        self.now = 100.0
        self.spares = Spares(socket.AF_INET6, self.inside, self.prepare, lambda: self.now)

    @contextmanager
    def inside(self) -> Generator[None, None, None]:
        if self.is_gone:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        self.count += 1
        yield

    def prepare(self, sock: socket.socket) -> None:
        self.prepared += 1
        if self.refuses:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    def trips_of(self, sockets: int) -> int:
        before = self.count
        for _ in range(sockets):
            self.spares.take().close()
        return self.count - before


def test_who_dials_often_travels_rarely() -> None:
    made = Trips()

    assert made.trips_of(1 + 2 + 4 + 8) == 4
    assert made.trips_of(10 * MOST) == 10
    assert made.prepared == 15 + 10 * MOST


def test_who_dials_now_and_then_holds_none() -> None:
    made = Trips()
    made.trips_of(1 + 2 + 4 + 8)
    made.now += QUICK_SECONDS

    before = descriptors()
    for _ in range(3):
        assert made.trips_of(1) == 1
        made.now += QUICK_SECONDS
    assert descriptors() == before


def test_each_is_a_new_one_of_the_family_that_does_not_block() -> None:
    made = Trips()
    taken = [made.spares.take() for _ in range(5)]
    made.spares.close()

    assert len({sock.fileno() for sock in taken}) == 5
    for sock in taken:
        with sock:
            assert sock.family == socket.AF_INET6
            assert not os.get_blocking(sock.fileno())
            assert not sock.get_inheritable()


def test_what_is_left_is_closed_and_nothing_handed_out_after() -> None:
    before = descriptors()
    made = Trips()
    made.trips_of(1 + 2 + 4 + 1)
    assert descriptors() == before + 7
    made.spares.close()
    assert descriptors() == before

    made.is_gone = True
    with pytest.raises(OSError, match="Bad file descriptor"):
        made.spares.take()


def test_one_that_cannot_be_prepared_is_closed() -> None:
    made = Trips()
    made.refuses = True
    before = descriptors()

    with pytest.raises(PermissionError):
        made.spares.take()
    assert descriptors() == before


def test_the_last_descriptors_are_not_for_later() -> None:
    made = Trips()
    made.trips_of(1 + 2)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    two = os.dup(0), os.dup(0)
    for fd in two:
        os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(two) + 1, limits[1]))
    try:
        with (
            made.spares.take(),
            made.spares.take(),
            pytest.raises(OSError, match="Too many open files"),
        ):
            made.spares.take()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
