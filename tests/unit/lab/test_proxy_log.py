"""Log lines as the proxies write them."""

import json
from pathlib import Path

import trio
import trio.testing

from tests.fakes.trio_test import trio_test
from ztunnel_trio.lab.proxy_log import ProxyLog, parse_line, proxy_logs, reasons

PLAIN = (
    "2026-01-02T03:04:05.678901Z\terror\taccess\tconnection complete\tsrc.addr=10.77.2.10:40000 "
    'src.workload="client" src.identity="spiffe://cluster.local/ns/default/sa/client" direction="inbound" '
    'bytes_sent=0 duration="1ms" error="a \\"quoted\\" text = here"'
)


def test_a_plain_line_gives_its_fields_without_quotes() -> None:
    line = parse_line(PLAIN)

    assert line is not None
    assert (line.level, line.scope, line.message) == ("error", "access", "connection complete")
    assert line.get("src.addr") == "10.77.2.10:40000"
    assert line.get("src.workload") == "client"
    assert line.get("error") == 'a "quoted" text = here'
    assert line.get("dst.workload") == ""


def test_a_json_line_gives_the_same() -> None:
    entry = {
        "level": "info",
        "time": "2026-01-02T03:04:05.678901Z",
        "scope": "access",
        "message": "connection complete",
        "src.workload": "client",
        "bytes_sent": 11,
    }
    line = parse_line(json.dumps(entry))

    assert line is not None
    assert line.has({"src.workload": "client", "bytes_sent": "11"})


def test_other_text_is_no_line() -> None:
    assert parse_line("Traceback (most recent call last):") is None
    assert parse_line("{not json") is None
    assert parse_line("[]") is None
    assert parse_line("") is None


def test_access_lines_are_found_by_their_fields_from_a_mark_on(tmp_path: Path) -> None:
    log = ProxyLog(tmp_path / "log")
    assert log.mark() == 0
    assert log.raw() == []
    log.path.write_text(PLAIN + "\n" + PLAIN.replace("complete", "opened") + "\n")
    mark = log.mark()
    with log.path.open("a") as file:
        file.write(PLAIN.replace("client", "other") + "\nhalf a li")

    assert len(log.access()) == 2
    assert [line.get("src.workload") for line in log.access(mark)] == ["other"]
    assert log.access(mark, {"src.workload": "client"}) == []


@trio_test
async def test_waiting_for_a_line_ends_when_it_is_written(tmp_path: Path) -> None:
    log = ProxyLog(tmp_path / "log")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.wait_access, 0, {"direction": "inbound"})
        nursery.start_soon(log.wait_text, "quoted")
        await trio.testing.wait_all_tasks_blocked()
        log.path.write_text(PLAIN + "\n")


@trio_test(autojump=True)
async def test_reasons_are_the_errors_of_access_lines_since_the_marks(tmp_path: Path) -> None:
    inbound, old = tmp_path / "node-2" / "proxy.log", PLAIN.replace("text", "old")
    inbound.parent.mkdir()
    inbound.write_text(old + "\n")
    logs = proxy_logs(tmp_path)
    marks = {node: log.mark() for node, log in logs.items()}
    assert await reasons(logs, marks) == []

    with inbound.open("a") as file:
        file.write(PLAIN.replace(' error="', ' unerror="') + "\n" + PLAIN + "\n")

    assert await reasons(logs, marks) == ['node-2 inbound: a "quoted" text = here']
