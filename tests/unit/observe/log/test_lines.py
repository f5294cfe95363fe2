import json

from ztunnel_trio.observe.log import Bare, span
from ztunnel_trio.observe.log.levels import DEBUG, ERROR, INFO, WARN
from ztunnel_trio.observe.log.lines import Clock, json_line, plain_line
from ztunnel_trio.observe.log.spans import current_spans

MOMENT = "2026-01-02T03:04:05.678901Z"


def test_a_plain_line_has_five_columns() -> None:
    fields = [("address", Bare("[::]:15008")), ("component", "inbound"), ("absent", None), ("n", 1)]

    line = plain_line(MOMENT, INFO, "ztunnel::proxy::inbound", "listener established", fields)

    assert line == (
        f'{MOMENT}\tinfo\tproxy::inbound\tlistener established\taddress=[::]:15008 component="inbound" n=1'
    )


def test_a_plain_line_ends_with_a_tab_when_no_fields_follow() -> None:
    assert plain_line(MOMENT, WARN, "ztunnel", "hello", []) == f"{MOMENT}\twarn\tztunnel\thello\t"


def test_fields_without_a_message_follow_the_scope() -> None:
    assert plain_line(MOMENT, DEBUG, "dns", None, [("query", "A")]) == f'{MOMENT}\tdebug\tdns\tquery="A"'
    assert plain_line(MOMENT, DEBUG, "dns", None, []) == f"{MOMENT}\tdebug\tdns"


def test_spans_follow_the_scope_from_root_to_leaf() -> None:
    with span("xds", id=1), span("local_client") as inner, span("proxy", wl=Bare("ns/name"), none=None):
        spans = current_spans.get()

    assert inner.plain == ":local_client"
    assert plain_line(MOMENT, INFO, "ztunnel::xds::client", "Stream established", [], spans) == (
        f"{MOMENT}\tinfo\txds::client:xds{{id=1}}:local_client:proxy{{wl=ns/name}}\tStream established\t"
    )
    assert current_spans.get() == ()


def test_a_json_line_keeps_the_full_scope_and_numbers() -> None:
    with span("xds", id=1):
        line = json_line(
            MOMENT,
            ERROR,
            "ztunnel::xds::client",
            "a\n",
            [("src.addr", Bare("1.2.3.4:5")), ("bytes_sent", 11), ("no", None), ("ok", True)],
            current_spans.get(),
        )

    assert line == (
        f'{{"level":"error","time":"{MOMENT}","scope":"ztunnel::xds::client","message":"a\\n",'
        '"src.addr":"1.2.3.4:5","bytes_sent":11,"ok":true,"xds":{"id":1}}'
    )
    assert json.loads(json_line(MOMENT, INFO, "dns", None, [("query", "A")])) == {
        "level": "info", "time": MOMENT, "scope": "dns", "query": "A"
    }  # fmt: skip


def test_the_clock_formats_microseconds_in_utc() -> None:
    clock = Clock()

    assert clock.text(1_767_323_045_678_901_234) == "2026-01-02T03:04:05.678901Z"
    assert clock.text(1_767_323_045_000_000_999) == "2026-01-02T03:04:05.000000Z"
    assert clock.text(0) == "1970-01-01T00:00:00.000000Z"
