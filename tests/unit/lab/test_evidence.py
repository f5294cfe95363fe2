"""Each promise is broken by the evidence against it, and by that alone."""

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from tests.unit.lab.test_capture import handshaken, opened
from ztunnel_trio.lab.capture import Activity, Wire
from ztunnel_trio.lab.evidence import (
    DeletionEvidence,
    EvidenceParty,
    HopEvidence,
    Story,
    decided_by,
    tell_allowed,
    tell_deletion,
    tell_plain,
    tell_refused,
)
from ztunnel_trio.lab.proxy_log import LogLine

SLEEP = EvidenceParty(
    "sleep", "default", "node-1", IPv4Address("10.88.16.10"), "spiffe://cluster.local/ns/default/sa/sleep"
)
WEB = EvidenceParty(
    "web-api", "default", "node-2", IPv4Address("10.88.16.11"), "spiffe://cluster.local/ns/default/sa/web"
)
POLICY = "default/keep-out"


def line(error: str = "", **fields: str) -> LogLine:
    named = {
        "src.identity": SLEEP.identity,
        "dst.identity": WEB.identity,
        "dst.hbone_addr": "10.88.16.11:8080",
        **{name.replace("__", "."): text for name, text in fields.items()},
    }
    return LogLine("info", "access", "connection complete", {**named, "error": error} if error else named)


def activity(wire: Wire) -> list[Activity]:
    return [Activity(flow, 100, 3, is_new=True) for flow in wire.everything()]


ALLOWED = HopEvidence(
    caller=SLEEP,
    callee=WEB,
    port=8080,
    reached=["10.88.16.10"],
    error=None,
    outbound=line(),
    inbound=line(),
    wire=activity(handshaken()),
    in_clear=False,
)
DENIED = replace(
    ALLOWED,
    reached=[],
    error="the connection ended without an answer",
    inbound=line(f"connection closed due to policy rejection: explicitly denied by: {POLICY}"),
)


def broken(story: Story) -> list[str]:
    return [finding.text for finding in story.findings if not finding.kept]


def test_a_call_as_promised() -> None:
    story = tell_allowed(ALLOWED)

    assert story.kept
    assert story.verdict == "allowed"
    assert story.server_saw == SLEEP.identity
    assert "TLS 1.3" in story.wire


@pytest.mark.parametrize(
    ("evidence", "count"),
    [
        (replace(ALLOWED, error="connection refused"), 1),
        (replace(ALLOWED, reached=["10.88.1.10"]), 1),
        (replace(ALLOWED, reached=[]), 1),
        (replace(ALLOWED, in_clear=True), 1),
        (replace(ALLOWED, wire=[]), 1),
        (replace(ALLOWED, wire=activity(opened())), 1),
        (replace(ALLOWED, inbound=None), 2),
        (replace(ALLOWED, outbound=None), 2),
        (replace(ALLOWED, inbound=line(src__identity="spiffe://cluster.local/ns/default/sa/other")), 1),
        (replace(ALLOWED, outbound=line(dst__identity="spiffe://cluster.local/ns/default/sa/other")), 1),
        (replace(ALLOWED, outbound=line("something broke")), 1),
    ],
)
def test_each_piece_of_evidence_against_it_breaks_its_promise(evidence: HopEvidence, count: int) -> None:
    assert len(broken(tell_allowed(evidence))) == count


def test_a_refusal_as_promised_names_the_policy() -> None:
    story = tell_refused(DENIED, POLICY)

    assert story.kept
    assert story.verdict == f"refused by policy {POLICY}"


@pytest.mark.parametrize(
    "evidence",
    [
        replace(DENIED, error=None),
        replace(DENIED, reached=["10.88.16.10"]),
        replace(DENIED, inbound=line("explicitly denied by: default/another")),
        replace(DENIED, inbound=line("connection failed")),
        replace(DENIED, in_clear=True),
        ALLOWED,
    ],
)
def test_a_refusal_for_another_reason_is_not_as_promised(evidence: HopEvidence) -> None:
    assert not tell_refused(evidence, POLICY).kept


def test_the_deciding_policy_is_read_from_the_servers_line() -> None:
    assert decided_by(DENIED) == POLICY
    assert decided_by(ALLOWED) is None
    assert decided_by(replace(ALLOWED, inbound=None)) is None


def test_a_call_from_outside_has_to_be_seen_in_clear() -> None:
    outsider = EvidenceParty("outsider", "", "", IPv4Address("10.88.3.10"), "")
    seen = replace(
        ALLOWED,
        caller=outsider,
        inbound=line(src__identity=""),
        outbound=None,
        wire=activity(opened()),
        in_clear=True,
    )

    assert tell_plain(seen).kept
    assert not tell_plain(replace(seen, in_clear=False)).kept
    assert not tell_plain(replace(seen, inbound=line())).kept


GONE = DeletionEvidence(
    pod="purchase-history",
    connection_lived=True,
    connection_end="reset",
    seconds=0.003,
    ports_before=[8080, 15001, 15006, 15008],
    ports_after=[8080],
    refused=[15001, 15006, 15008],
    acknowledged="",
    held_before=6,
    held_after=0,
    mentioned=False,
    others_served=True,
)


def test_a_deletion_as_promised() -> None:
    assert all(finding.kept for finding in tell_deletion(GONE, (15001, 15006, 15008)))


@pytest.mark.parametrize(
    "evidence",
    [
        replace(GONE, connection_lived=False),
        replace(GONE, connection_end=None),
        replace(GONE, ports_before=[8080]),
        replace(GONE, ports_after=[8080, 15008]),
        replace(GONE, refused=[15001]),
        replace(GONE, acknowledged="failure to process message"),
        replace(GONE, held_after=1),
        replace(GONE, held_before=0),
        replace(GONE, mentioned=True),
        replace(GONE, mentioned=None),
        replace(GONE, others_served=False),
    ],
)
def test_what_is_left_of_a_deleted_pod_breaks_one_promise(evidence: DeletionEvidence) -> None:
    findings = tell_deletion(evidence, (15001, 15006, 15008))

    assert len([finding for finding in findings if not finding.kept]) == 1
