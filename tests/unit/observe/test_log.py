import io
import json
import logging
import os
import threading
from collections.abc import Iterator

import pytest
import trio

from tests.fakes.trio_test import trio_test
from ztunnel_trio.errors import ConfigError
from ztunnel_trio.observe import log
from ztunnel_trio.observe.log import (
    DEBUG,
    ERROR,
    INFO,
    OFF,
    TRACE,
    WARN,
    Bare,
    Clock,
    Filter,
    LineWriter,
    configure,
    current_filter,
    get_logger,
    json_line,
    level_of,
    one_line,
    plain_line,
    plain_value,
    set_filter,
    span,
    startup_filter,
    unconfigure,
    write_event,
)

MOMENT = "2026-01-02T03:04:05.678901Z"


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    yield io.StringIO()
    unconfigure()


def bodies(stream: io.StringIO) -> list[str]:
    """The lines without their time."""
    return [line.partition("\t")[2] for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("info", "info"),
        ("", "error"),
        ("INFO", "info"),
        ("4", "debug"),
        ("0", "off"),
        ("access=debug,info", "access=debug,info"),
        ("info,access=debug", "access=debug,info"),
        ("ztunnel::proxy=debug", "ztunnel::proxy=debug"),
        ("ztunnel::proxy", "ztunnel::proxy=trace"),
        ("warning", "warning=trace"),
        ("a=", "a=error"),
        ("a=info,a=debug", "a=debug"),
        ("aa=info,b=debug,bb=warn,off", "bb=warn,aa=info,b=debug,off"),
        ("a[{x,y}]=info,a=warn", "a[{x,y}]=info,a=warn"),
        ("info,,", "error"),
        ("=debug", "=debug"),
    ],
)
def test_a_filter_prints_most_specific_first(text: str, printed: str) -> None:
    assert str(Filter.parse(text)) == printed
    assert str(Filter.parse(printed)) == printed


@pytest.mark.parametrize(
    "text", ["a=warning", "a=loud", "a=b=info", "a[{x=info", "a[{x}]y=info", "a=6", "a= info"]
)
def test_a_malformed_filter_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        Filter.parse(text)


@pytest.mark.parametrize(
    ("text", "target", "level", "wanted"),
    [
        ("info", "ztunnel::proxy", INFO, True),
        ("info", "ztunnel::proxy", DEBUG, False),
        ("ztunnel::proxy=debug", "ztunnel::rbac", ERROR, False),
        ("ztunnel::prox=debug", "ztunnel::proxy::inbound", DEBUG, True),  # a string prefix, no module
        ("ztunnel=debug,ztunnel::proxy=warn", "ztunnel::proxy", INFO, False),
        ("access=off,info", "access", ERROR, False),
        ("off", "access", ERROR, False),
        ("trace", "x", TRACE, True),
    ],
)
def test_the_most_specific_directive_decides(text: str, target: str, level: int, *, wanted: bool) -> None:
    chosen = Filter.parse(text)

    assert chosen.wants(target, level, ()) is wanted
    assert (level >= chosen.reach(target)) is wanted


def test_a_directive_with_fields_needs_all_of_them() -> None:
    chosen = Filter.parse("access[{src.addr,error}]=debug,access=warn")

    assert chosen.wants("access", DEBUG, ["src.addr", "error", "x"])
    assert not chosen.wants("access", DEBUG, ["src.addr"])
    assert chosen.reach("access") == DEBUG


@pytest.mark.parametrize(
    ("base", "added", "printed"),
    [
        ("info", "debug", "debug"),
        ("info", "access=debug,info", "access=debug,info"),
        ("info", "off", "off"),
        ("access=debug,info", "ztunnel::proxy=TRACE", "ztunnel::proxy=trace,access=debug,info"),
        ("info", "access:debug", "access=debug,info"),
        ("info", "ztunnel::proxy:debug", "ztunnel::proxy=debug,info"),
        ("info", "a=4", "a=debug,info"),
    ],
)
def test_levels_are_added_to_a_filter(base: str, added: str, printed: str) -> None:
    assert str(Filter.parse(base).with_levels(added)) == printed


@pytest.mark.parametrize("text", ["INFO", "warning", "ztunnel::proxy", "a=loud", "info,", "", "a:loud", "4"])
def test_what_is_no_level_is_refused_when_added(text: str) -> None:
    with pytest.raises(ConfigError):
        Filter.parse("info").with_levels(text)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", '"plain"'),
        ('a "b" \\', '"a \\"b\\" \\\\"'),
        ("a\nb\tc\r", '"a\\nb\\tc\\r"'),
        ("\x1b[31m", '"\\u{1b}[31m"'),
        ("größe", '"größe"'),
        ("\ud800", '"\\u{d800}"'),
        (Bare("10.0.0.1:80"), "10.0.0.1:80"),
        (Bare("a\nb"), "a\\nb"),
        (7, "7"),
        (1.5, "1.5"),
        (True, "true"),
        (False, "false"),
    ],
)
def test_values_in_plain_lines(value: str | int | float | bool, text: str) -> None:
    assert plain_value(value) == text


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
        spans = log.current_spans.get()

    assert inner.plain == ":local_client"
    assert plain_line(MOMENT, INFO, "ztunnel::xds::client", "Stream established", [], spans) == (
        f"{MOMENT}\tinfo\txds::client:xds{{id=1}}:local_client:proxy{{wl=ns/name}}\tStream established\t"
    )
    assert log.current_spans.get() == ()


def test_a_json_line_keeps_the_full_scope_and_numbers() -> None:
    with span("xds", id=1):
        line = json_line(
            MOMENT,
            ERROR,
            "ztunnel::xds::client",
            "a\n",
            [("src.addr", Bare("1.2.3.4:5")), ("bytes_sent", 11), ("no", None), ("ok", True)],
            log.current_spans.get(),
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


@pytest.mark.parametrize(
    ("number", "level"), [(50, ERROR), (45, ERROR), (30, WARN), (25, INFO), (10, DEBUG), (1, TRACE)]
)
def test_any_level_number_is_one_of_ours(number: int, level: int) -> None:
    assert level_of(number) == level


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("xds::client", "ztunnel::xds::client"),
        ("ztunnel::xds::client", "ztunnel::xds::client"),
        ("dns::server", "ztunnel::dns::server"),
        ("dns", "dns"),
        ("access", "access"),
        ("ztunnel", "ztunnel"),
        ("h2.connection", "h2.connection"),
    ],
)
def test_our_targets_may_be_named_without_their_prefix(name: str, target: str) -> None:
    assert get_logger(name).name == log.target_of(name) == target


def test_an_event_is_one_line_whatever_the_network_sent(stream: io.StringIO) -> None:
    configure("info", stream=stream)

    logging.getLogger("rbac").warning("bad name %s", "x\n2026\tfake", extra={"fields": {"peer": "a\nb"}})

    assert bodies(stream) == ['warn\trbac\tbad name x\\n2026\\tfake\tpeer="a\\nb"']


def test_our_own_long_text_may_keep_its_lines(stream: io.StringIO) -> None:
    configure("info", stream=stream)

    logging.getLogger("ztunnel").info("running with config: \na: 1", extra={"verbatim": True})

    assert stream.getvalue().endswith("running with config: \na: 1\t\n")


def test_a_traceback_is_a_field(stream: io.StringIO) -> None:
    configure("info", stream=stream)

    try:
        raise ValueError("boom")
    except ValueError:
        logging.getLogger("app").exception("failed")

    (line,) = bodies(stream)
    assert line.startswith('error\tapp\tfailed\ttraceback="Traceback (most recent call last):\\n')
    assert "ValueError: boom" in line


def test_a_broken_call_does_not_reach_its_caller(
    stream: io.StringIO, capsys: pytest.CaptureFixture[str]
) -> None:
    output = configure("info", stream=stream)

    output.handle(logging.LogRecord("app", INFO, __file__, 1, "%d", ("no number",), None))

    assert stream.getvalue() == ""
    assert "Logging error" in capsys.readouterr().err


def test_the_filter_changes_at_run_time(stream: io.StringIO) -> None:
    rbac = get_logger("rbac")
    startup = configure("info", stream=stream).startup
    rbac.debug("one")
    assert not log.is_enabled("access", DEBUG)

    set_filter(startup.with_levels("ztunnel::rbac=debug,access=debug"))
    rbac.debug("two")
    logging.getLogger("made::later").debug("three")

    assert bodies(stream) == ["debug\trbac\ttwo\t"]
    assert log.is_enabled("access", DEBUG)
    assert str(current_filter()) == f"{log.ALWAYS},ztunnel::rbac=debug,access=debug,info"
    assert str(startup_filter()) == f"{log.ALWAYS},info"
    assert not logging.getLogger("trio").isEnabledFor(DEBUG)


def test_unconfigure_leaves_logging_as_it_was() -> None:
    configure("trace", stream=io.StringIO())
    unconfigure()

    assert current_filter() is None
    assert startup_filter() is None
    assert logging.getLogger().level == logging.WARNING
    set_filter(Filter.parse("trace"))
    assert not log.is_enabled("access", INFO)


def test_a_malformed_startup_filter_is_refused() -> None:
    with pytest.raises(ConfigError):
        configure("a=loud", stream=io.StringIO())


def test_events_without_records_ask_the_filter(stream: io.StringIO) -> None:
    configure("access[{error}]=info,warn", is_json=True, stream=stream)

    write_event(INFO, "access", "one", [("error", None)])
    write_event(INFO, "access", "two", [("error", "e")])
    write_event(DEBUG, "access", "three", [("error", "e")])

    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == ["two"]


def test_events_without_records_can_be_captured_in_tests(caplog: pytest.LogCaptureFixture) -> None:
    write_event(WARN, "access", "connection failed", [("error", "e"), ("none", None)])

    (record,) = caplog.records
    assert vars(record)["fields"] == {"error": "e"}


def test_access_lines_have_no_spans_and_others_do(stream: io.StringIO) -> None:
    configure("info", stream=stream)

    with span("inbound", id="abc"):
        logging.getLogger("access").info("connection complete")
        logging.getLogger("proxy::inbound").info("hello")

    assert bodies(stream) == [
        "info\taccess\tconnection complete\t",
        'info\tproxy::inbound:inbound{id="abc"}\thello\t',
    ]


@trio_test
async def test_child_tasks_inherit_the_span() -> None:
    seen: list[str] = []

    async def child() -> None:
        seen.extend(inner.name for inner in log.current_spans.get())

    async with trio.open_nursery() as nursery:
        with span("outbound", id=1):
            nursery.start_soon(child)

    assert seen == ["outbound"]


def test_an_event_without_a_message_has_none(stream: io.StringIO) -> None:
    configure("dns=debug", stream=stream)

    logging.getLogger("dns").debug("", extra={"fields": {"query": "A"}})

    assert bodies(stream) == ['debug\tdns\tquery="A"']


def test_one_line_leaves_ordinary_text_alone() -> None:
    assert one_line('say "hi" \\ größe') == 'say "hi" \\ größe'


def read_all(descriptor: int) -> bytes:
    data = b""
    while piece := os.read(descriptor, 1 << 16):
        data += piece
    return data


def test_lines_reach_a_free_descriptor_at_once() -> None:
    reader, writer_end = os.pipe()
    writer = LineWriter(writer_end)

    writer.write(b"one\n")

    assert os.read(reader, 100) == b"one\n"
    assert writer.close(0)
    os.close(reader)
    os.close(writer_end)


def test_no_line_is_lost_or_torn_when_the_reader_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "QUEUE_LINES", 50)
    reader, writer_end = os.pipe()
    writer = LineWriter(writer_end)
    lines = [b"%04d " % number + b"x" * 500 + b"\n" for number in range(500)]
    found: list[bytes] = []
    late = threading.Event()

    def read() -> None:
        late.wait()
        found.append(read_all(reader))

    thread = threading.Thread(target=read)
    thread.start()
    for number, line in enumerate(lines):
        if number == 150:  # 64 KiB in the pipe, then the queue; from 180 on the call would block
            late.set()
        writer.write(line)
    writer.write(b"y" * 10_000 + b"\n")  # too long for one atomic write
    assert writer.close(5)
    os.close(writer_end)
    thread.join()
    os.close(reader)

    assert found[0].splitlines(keepends=True) == [*lines, b"y" * 10_000 + b"\n"]


def test_a_descriptor_nobody_reads_any_more_loses_lines_quietly() -> None:
    reader, writer_end = os.pipe()
    writer = LineWriter(writer_end)
    os.close(reader)

    writer.write(b"one\n")
    writer.write(b"z" * 10_000 + b"\n")

    assert writer.close(5)
    os.close(writer_end)


def test_a_stream_with_a_descriptor_is_written_to_directly(tmp_path: os.PathLike[str]) -> None:
    path = os.path.join(tmp_path, "log")
    with open(path, "w") as stream:
        configure("info", stream=stream)
        logging.getLogger("ztunnel").info("hello")
        unconfigure()

    with open(path) as written:
        assert written.read().endswith("\tinfo\tztunnel\thello\t\n")


def test_off_is_above_every_level() -> None:
    assert ERROR < OFF
