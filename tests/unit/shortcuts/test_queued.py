import os

import pytest

from ztunnel_trio.shortcuts import queued


def test_the_short_way_knows_what_is_there() -> None:
    reading, writing = os.pipe()
    assert queued.short(reading)
    os.write(writing, b"x" * 256)  # a number whose lowest byte is nought
    assert not queued.short(reading)
    os.read(reading, 256)
    assert queued.short(reading)
    os.close(reading)
    os.close(writing)


def test_the_plain_way_does_not_know() -> None:
    reading, writing = os.pipe()
    assert not queued.plain(reading)
    os.close(reading)
    os.close(writing)


def test_the_short_way_works_here_and_is_taken() -> None:
    assert queued.works()
    assert queued.look() is queued.short


def test_where_the_kernel_says_otherwise_it_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queued, "short", lambda fd: True)

    assert not queued.works()
