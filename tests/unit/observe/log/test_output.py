import io
import json
import logging
import os
from collections.abc import Iterator

import pytest

from ztunnel_trio.errors import ConfigError
from ztunnel_trio.observe import log
from ztunnel_trio.observe.log import (
    Filter,
    configure,
    current_filter,
    get_logger,
    set_filter,
    span,
    startup_filter,
    unconfigure,
    write_event,
)
from ztunnel_trio.observe.log.filter import ALWAYS
from ztunnel_trio.observe.log.levels import DEBUG, INFO, WARN


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    yield io.StringIO()
    unconfigure()


def bodies(stream: io.StringIO) -> list[str]:
    """The lines without their time."""
    return [line.partition("\t")[2] for line in stream.getvalue().splitlines()]


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
    assert str(current_filter()) == f"{ALWAYS},ztunnel::rbac=debug,access=debug,info"
    assert str(startup_filter()) == f"{ALWAYS},info"
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


def test_an_event_without_a_message_has_none(stream: io.StringIO) -> None:
    configure("dns=debug", stream=stream)

    logging.getLogger("dns").debug("", extra={"fields": {"query": "A"}})

    assert bodies(stream) == ['debug\tdns\tquery="A"']


def test_a_stream_with_a_descriptor_is_written_to_directly(tmp_path: os.PathLike[str]) -> None:
    path = os.path.join(tmp_path, "log")
    with open(path, "w") as stream:
        configure("info", stream=stream)
        logging.getLogger("ztunnel").info("hello")
        unconfigure()

    with open(path) as written:
        assert written.read().endswith("\tinfo\tztunnel\thello\t\n")
