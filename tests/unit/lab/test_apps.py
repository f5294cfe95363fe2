"""What applications say of themselves; they run for real in the namespaced tests."""

import json

import pytest

from ztunnel_trio.lab.apps import Hop, hops, payload

WHOLE = {
    "name": "web-api",
    "client": "10.88.16.10",
    "marker": "m",
    "upstream": {"name": "recommendation", "client": "10.88.16.11", "marker": "m", "upstream": None},
}


def test_a_chained_reply_is_read_hop_by_hop() -> None:
    assert hops(json.dumps(WHOLE).encode()) == [
        Hop("web-api", "10.88.16.10", 200, marker="m"),
        Hop("recommendation", "10.88.16.11", 200, marker="m"),
    ]


def test_a_chain_that_broke_says_where() -> None:
    broken = {**WHOLE, "upstream": {"error": "reset"}}

    assert hops(json.dumps(broken).encode())[-1] == Hop("", "", 0, error="reset")


def test_what_is_no_reply_is_refused() -> None:
    with pytest.raises(ValueError, match="Expecting value"):
        hops(b"<html>")
    assert hops(b"[]") == []


def test_payload_is_the_same_every_time() -> None:
    assert payload(10) == payload(1000)[:10]
    assert payload(10) != payload(10, b"other")
