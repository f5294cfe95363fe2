"""The one handler of `logging`, installed by `configure`; and the way around `logging` for busy lines."""

import io
import logging
import traceback
from typing import IO, Final

from ztunnel_trio.observe.log.fields import Fields, FieldValue, one_line
from ztunnel_trio.observe.log.filter import ALWAYS, DEFAULT_FILTER, Filter
from ztunnel_trio.observe.log.levels import TRACE, level_of
from ztunnel_trio.observe.log.lines import Clock, json_line, plain_line
from ztunnel_trio.observe.log.spans import current_spans, span
from ztunnel_trio.observe.log.targets import target_of
from ztunnel_trio.observe.log.writer import LineWriter, StreamWriter

MOST_TARGETS: Final = 4096  # whose level is remembered


class Output(logging.Handler):
    """The one handler: filter, format, write."""

    def __init__(self, chosen: Filter, *, is_json: bool, writer: LineWriter | StreamWriter) -> None:
        super().__init__(TRACE)
        self.startup = chosen
        self.filter_now = chosen
        self.is_json = is_json
        self.writer = writer
        self._format = json_line if is_json else plain_line
        self._clock = Clock()

    def use(self, chosen: Filter) -> None:
        """Change the filter for everything from here on."""
        self.filter_now = chosen
        _reach.clear()
        root = logging.getLogger()
        root.setLevel(chosen.lowest())
        for name in list(root.manager.loggerDict):
            logger = logging.getLogger(name)
            logger.setLevel(chosen.reach(target_of(name)))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            target, level = target_of(record.name), level_of(record.levelno)
            fields = dict(getattr(record, "fields", None) or {})
            if record.exc_info and record.exc_info[1] is not None:
                fields["traceback"] = "".join(traceback.format_exception(record.exc_info[1]))
            if not self.filter_now.wants(target, level, fields):
                return
            message = record.getMessage() or None
            spans = () if target == "access" else current_spans.get()
            verbatim = getattr(record, "verbatim", False)
            self.write(level, target, message, fields.items(), spans, verbatim=verbatim)
        except Exception:  # noqa: BLE001  logging's own contract: never raise into the caller
            self.handleError(record)

    def write(
        self,
        level: int,
        target: str,
        message: str | None,
        fields: Fields,
        spans: tuple[span, ...] = (),
        *,
        verbatim: bool = False,
    ) -> None:
        """Format and write one event, wanted or not. `verbatim` keeps the line ends of our own text."""
        if message is not None and not self.is_json and not verbatim and not message.isprintable():
            message = one_line(message)
        line = self._format(self._clock.text(), level, target, message, fields, spans)
        self.writer.write((line + "\n").encode("utf-8", "replace"))


_output: Output | None = None
_reach: Final[dict[str, int]] = {}  # of targets asked for, while there is an output


def configure(filter_text: str | None, *, is_json: bool = False, stream: IO[str]) -> Output:
    """Install the handler, replacing an earlier one. `filter_text` None: the default filter.

    Raises:
        ConfigError: the filter cannot be parsed.
    """
    global _output
    chosen = Filter.parse(f"{ALWAYS},{DEFAULT_FILTER if filter_text is None else filter_text}")
    try:
        writer: LineWriter | StreamWriter = LineWriter(stream.fileno())
    except io.UnsupportedOperation:
        writer = StreamWriter(stream)
    unconfigure()
    _output = Output(chosen, is_json=is_json, writer=writer)
    logging.getLogger().addHandler(_output)
    _output.use(chosen)
    return _output


def unconfigure() -> None:
    """Take the handler away again and let levels be what they were: for tests and the command line."""
    global _output
    if _output is None:
        return
    root = logging.getLogger()
    root.removeHandler(_output)
    _output.writer.close()
    _output = None
    _reach.clear()
    root.setLevel(logging.WARNING)
    for name in list(root.manager.loggerDict):
        logging.getLogger(name).setLevel(logging.NOTSET)


def current_filter() -> Filter | None:
    """The filter in force; None before `configure`."""
    return None if _output is None else _output.filter_now


def startup_filter() -> Filter | None:
    """The filter given to `configure`; None before it."""
    return None if _output is None else _output.startup


def set_filter(chosen: Filter) -> None:
    """Change the filter while running. Without effect before `configure`."""
    if _output is not None:
        _output.use(chosen)


def is_enabled(target: str, level: int) -> bool:
    """Whether an event of that target (in full) and level may be wanted."""
    reach = _reach.get(target)
    if reach is None:
        if _output is None:
            return logging.getLogger(target).isEnabledFor(level)
        reach = _output.filter_now.reach(target)
        if len(_reach) < MOST_TARGETS:
            _reach[target] = reach
    return level >= reach


def write_event(level: int, target: str, message: str, fields: list[tuple[str, FieldValue]]) -> None:
    """Write one event without `logging`'s records, spans or caller lookup; the filter is asked.

    Before `configure` it goes through `logging`, so that tests may capture it.
    """
    if _output is None:
        shown = {key: value for key, value in fields if value is not None}
        logging.getLogger(target).log(level, message, extra={"fields": shown})
    elif is_enabled(target, level) and (
        not any(d.fields for d in _output.filter_now.directives)
        or _output.filter_now.wants(target, level, {key for key, value in fields if value is not None})
    ):
        _output.write(level, target, message, fields)
