"""Istio's dashboard for ztunnel: Prometheus scrapes a demo's proxies and has an answer for every panel."""

import shutil

import pytest
import trio

from tests.docs.blocks import ROOT
from tests.docs.dashboard_page import PANELS, answers

PAGE = ROOT / "docs" / "dashboards.md"
needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="Debian's package prometheus"
)


@needs_prometheus
def test_each_panel_is_answered() -> None:
    found = trio.run(answers)

    assert [panel for panel, _ in found] == list(PANELS)
    assert not [panel.name for panel, series in found if not series]
    values = {panel.name: series for panel, series in found}
    assert len(values["Connections, opened"]) == 2  # both nodes
    assert values["Workload Manager, pending"] == ["ztunnel-node-1: 0", "ztunnel-node-2: 0"]
    assert values["Ztunnel Versions"] == ["unknown: 2"]


def test_the_page_shows_each_panels_query() -> None:
    assert all(f"| {panel.name} | `{panel.query}` |" in PAGE.read_text() for panel in PANELS)
