"""Tests on a real kernel: skipped aloud without the rights; with REQUIRE_NETNS=1 a skip is a failure."""

import os

import pytest

from ztunnel_trio.lab.privilege import missing_capabilities


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Every test of this folder needs namespaces."""
    if "netns" not in item.path.parts:
        return
    if missing := missing_capabilities():
        text = f"needs root or a user namespace: {', '.join(missing)} missing"
        if os.environ.get("REQUIRE_NETNS") == "1":  # noqa: TID251  how CI says so
            pytest.fail(text)
        pytest.skip(text)
