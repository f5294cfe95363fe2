import gc
from collections.abc import Generator

import pytest

from ztunnel_trio.shortcuts import collector


@pytest.fixture(autouse=True)
def _as_before() -> Generator[None, None, None]:
    thresholds = gc.get_threshold()
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()
    gc.enable()


def test_nothing_is_looked_for_while_paused() -> None:
    with collector.paused():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_who_has_switched_it_off_finds_it_off() -> None:
    gc.disable()
    with collector.paused():
        pass
    with collector.large_load():
        pass
    assert not gc.isenabled()


def test_once_settled_it_looks_rarely_and_not_at_what_was_there() -> None:
    with collector.paused():
        collector.settle()
        assert gc.isenabled()
    assert gc.get_threshold()[0] == collector.YOUNG
    assert gc.get_freeze_count() > 0


def test_what_a_large_load_leaves_is_not_looked_at() -> None:
    gc.unfreeze()
    with collector.large_load():
        assert not gc.isenabled()
        assert gc.get_freeze_count() == 0
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0
