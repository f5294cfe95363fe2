"""Endings are values: compared, kept in sets, matched; the union knows all of them."""

import dataclasses
import inspect
from typing import get_args

import pytest

from ztunnel_trio.model import ending
from ztunnel_trio.model.ending import (
    CLEAN,
    By,
    Clean,
    Ending,
    GoAway,
    NotProcessed,
    StreamReset,
    SystemFailure,
    TunnelLost,
)

VALUES = [
    value
    for _, value in inspect.getmembers(ending, dataclasses.is_dataclass)
    if inspect.isclass(value) and value.__module__ == ending.__name__
]
CAUSES = (ending.CertificateInvalid, ending.AlertReceived, ending.TlsLibrary, ending.TransportEnded,
          ending.PeerSilent, ending.GoAway)  # fmt: skip  # never an ending of their own


@pytest.mark.parametrize("value", VALUES, ids=lambda value: value.__name__)
def test_every_value_is_frozen_documented_and_in_the_union_or_a_cause(value: type) -> None:
    assert value.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert "__slots__" in vars(value)
    assert value.__doc__
    assert not value.__doc__.startswith(value.__name__ + "(")
    assert (value in get_args(Ending)) != (value in CAUSES)


def test_equal_endings_are_one() -> None:
    assert Clean() == CLEAN
    assert len({StreamReset(8), StreamReset(8, By.PEER), StreamReset(8, By.US), NotProcessed(8)}) == 3
    assert TunnelLost(GoAway(11)) == TunnelLost(GoAway(11, By.PEER))
    assert SystemFailure(104) != SystemFailure(111)
