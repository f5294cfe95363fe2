"""The alerting rules: Prometheus accepts them, they name metrics of the program, and they fire."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.docs.blocks import ROOT, blocks
from ztunnel_trio.observe.metrics import process
from ztunnel_trio.observe.metrics.families import TABLE, Family, FamilyKind

RULES = ROOT / "docs" / "alerts.yaml"
PAGE = ROOT / "docs" / "alerts.md"
ALERTS = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
SAMPLES = {
    FamilyKind.COUNTER: ["_total"],
    FamilyKind.GAUGE: [""],
    FamilyKind.HISTOGRAM: ["_bucket", "_sum", "_count"],
}
PROCESS = [value for value in vars(process).values() if isinstance(value, Family)]
OF_PROMETHEUS = {"up"}
# how the first sample of an alert has to look for it to fire within an hour, and after how long
FIRING = {
    "ZtunnelNotReady": ('ztunnel_trio_not_ready_seconds{pod="p",task="state manager"}', "0+60x30", "10m"),
    "ZtunnelDown": ('up{app="ztunnel",pod="p"}', "0x30", "10m"),
    "ZtunnelCertificateEndsSoon": ('ztunnel_trio_certificate_left_seconds{pod="p"}', "7000-60x40", "20m"),
    "ZtunnelRevocationListStale": ('ztunnel_trio_revocation_list_left_seconds{pod="p"}', "-5-60x30", "15m"),
    "ZtunnelControlPlaneLost": (
        'istio_xds_connection_terminations_total{pod="p",reason="ConnectionError"}',
        "0+4x60",
        "40m",
    ),
    "ZtunnelRefusalsRise": (
        'ztunnel_trio_refusals_total{pod="p",reason="policy_rejection",reporter="destination"}',
        "0+6x60 360+600x60",
        "74m",
    ),
    "ZtunnelFloodCut": ('ztunnel_trio_floods_cut_total{pod="p",kind="reset"}', "0+1x30", "10m"),
    "ZtunnelPartRestarts": ('ztunnel_trio_part_restarts_total{pod="p",part="ads"}', "0+1x30", "15m"),
    "ZtunnelClockSkew": ('ztunnel_trio_clock_skew_seconds{pod="p"}', "-30x30", "10m"),
    "ZtunnelSeriesOverflow": (
        'ztunnel_trio_series_overflowed_total{pod="p",of="connections"}',
        "0+9x40",
        "30m",
    ),
    "ZtunnelLoopHeld": ('event_loop_hold_seconds_bucket{pod="p",le="+Inf"}', "0+100x60", "30m"),
    "ZtunnelDescriptorsRunOut": ('process_open_fds{app="ztunnel",pod="p"}', "900x30", "10m"),
}
BESIDE = {  # the other series an alert looks at
    "ZtunnelLoopHeld": ('event_loop_hold_seconds_bucket{pod="p",le="0.25"}', "0x60"),
    "ZtunnelDescriptorsRunOut": ('process_max_fds{app="ztunnel",pod="p"}', "1000x30"),
}
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is in Debian's package prometheus"
)


def sample_names() -> set[str]:
    """The name of every sample the program can show."""
    return {f"{family.name}{end}" for family in (*TABLE, *PROCESS) for end in SAMPLES[family.kind]}


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_each_metric_of_a_rule_is_a_sample_of_the_program(alert: dict[str, str]) -> None:
    named = set(re.findall(r"\b(?:up|[a-z]+_\w+)\b(?!\()", alert["expr"]))

    assert named
    assert named <= sample_names() | OF_PROMETHEUS


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_is_explained_and_has_a_severity_and_a_summary(alert: dict[str, dict[str, str]]) -> None:
    assert f"| `{alert['alert']}` |" in PAGE.read_text()
    assert alert["labels"]["severity"] in ("critical", "warning", "info")
    assert "{{ $labels.pod }}" in alert["annotations"]["summary"]


@needs_promtool
def test_promtool_accepts_the_rules() -> None:
    [block] = [one for one in blocks() if one.mark == "test: promtool"]
    checked = subprocess.run(["sh", "-c", block.text], cwd=ROOT, capture_output=True, text=True, check=False)

    assert checked.returncode == 0, checked.stderr
    assert f"{len(ALERTS)} rules found" in checked.stdout


@needs_promtool
@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_fires(alert: dict[str, str], tmp_path: Path) -> None:
    name = alert["alert"]
    series, values, after = FIRING[name]
    inputs = [{"series": series, "values": values}]
    if name in BESIDE:
        inputs.append(dict(zip(("series", "values"), BESIDE[name], strict=True)))
    query = {"expr": f'count(ALERTS{{alertname="{name}",alertstate="firing"}})', "eval_time": after}
    case = {
        "interval": "1m",
        "input_series": inputs,
        "promql_expr_test": [{**query, "exp_samples": [{"labels": "{}", "value": 1}]}],
    }
    path = tmp_path / "case.yaml"
    path.write_text(
        yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [case]})
    )

    tried = subprocess.run(
        ["promtool", "test", "rules", str(path)], capture_output=True, text=True, check=False
    )

    assert tried.returncode == 0, tried.stdout + tried.stderr
