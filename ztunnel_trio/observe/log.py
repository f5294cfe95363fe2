"""The log: one event, one line, one write; plain or JSON; a filter that may change while we run.

Theory of operation. The standard `logging` module carries events here, with three additions: the
targets operators filter by (`ztunnel::proxy::outbound`, `access`; also accepted without `ztunnel::`),
fields (`extra={"fields": {...}}`), and spans, a context variable that child tasks inherit. `configure`
installs the one handler. Each known logger gets the most verbose level its target may have, so a
disabled call costs one comparison; the handler decides exactly. `write_event` is the way around
`logging` for lines on the path of every connection.

Lines go to the descriptor directly while it takes them at once. When it does not, they wait in a
queue of `QUEUE_LINES` that a thread empties with blocking writes, and a caller that finds the queue
full blocks: no line is ever lost, and memory is bounded (ztunnel src/telemetry.rs).
"""

import io
import json
import logging
import os
import re
import select
import threading
import time
import traceback
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import IO, Final, Self

from ztunnel_trio.errors import ConfigError

OFF: Final = 100
ERROR: Final = logging.ERROR
WARN: Final = logging.WARNING
INFO: Final = logging.INFO
DEBUG: Final = logging.DEBUG
TRACE: Final = 5
LEVELS: Final[Mapping[str, int]] = {
    "off": OFF, "error": ERROR, "warn": WARN, "info": INFO, "debug": DEBUG, "trace": TRACE
}  # fmt: skip
DIGITS: Final = tuple(LEVELS)
NAMES: Final = {level: name for name, level in LEVELS.items()}
DEFAULT_FILTER: Final = "info"
# The reference silences its DNS library so, and operators' tools compare what it prints (src/telemetry.rs).
ALWAYS: Final = "hickory_server::server=off"

QUEUE_LINES: Final = 10_000  # ztunnel src/telemetry.rs
BATCH_LINES: Final = 64  # lines one write of the thread carries at most, same source
CLOSE_SECONDS: Final = 1.0
MOST_TARGETS: Final = 4096  # whose level is remembered
ATOMIC_BYTES: Final = select.PIPE_BUF  # a pipe that polls writable takes so much without blocking

OWN_ROOTS: Final = frozenset(
    {"admin", "app", "cert_fetcher", "config", "copy", "dns", "drain", "hyper_util", "identity", "inpod"}
    | {"metrics", "proxy", "proxyfactory", "rbac", "readiness", "signal", "socket", "state", "telemetry"}
    | {"tls", "xds"}
)
OWN_PREFIX: Final = "ztunnel::"


class Bare(str):
    """A field value shown without quotes in plain lines: an address, an identity in display form."""

    __slots__ = ()


FieldValue = str | int | float | bool | None
Fields = Iterable[tuple[str, FieldValue]]


# --------------------------------------------------------------------------------------------- filter


@dataclass(frozen=True, slots=True)
class Directive:
    """Up to which level events are wanted whose target starts with `target` and that have all `fields`.

    `target` None is the default level.
    """

    target: str | None
    fields: tuple[str, ...]
    level: int

    @property
    def rank(self) -> tuple[int, int, str, tuple[str, ...]]:
        """Sorts the more specific directive last."""
        target = self.target
        return (-1 if target is None else len(target), len(self.fields), target or "", self.fields)

    def __str__(self) -> str:
        fields = f"[{{{','.join(self.fields)}}}]" if self.fields else ""
        head = f"{self.target or ''}{fields}"
        return f"{head}={NAMES[self.level]}" if head or self.target is not None else NAMES[self.level]

    @classmethod
    def parse(cls, text: str) -> "Directive":
        """Read `LEVEL`, `TARGET`, `TARGET=LEVEL` or `TARGET[{f1,f2}]=LEVEL`.

        Raises:
            ConfigError: no such level, or brackets out of place.
        """
        head, equals, level_text = text.partition("=")
        if not equals:
            level = parse_level(head)
            return cls(None, (), level) if level is not None else cls(head, (), TRACE)
        if "=" in level_text:
            raise ConfigError("too many '=' in filter directive, expected 0 or 1")
        level = parse_level(level_text)
        if level is None:
            raise ConfigError(f"invalid level in filter directive: {level_text}")
        target, opened, names = head.partition("[{")
        if opened and ("[{" in names or not names.endswith("}]")):
            raise ConfigError("expected fields list to end with '}]'")
        return cls(target, tuple(name for name in names.removesuffix("}]").split(",") if name), level)


def parse_level(text: str) -> int | None:
    """A level by name, in any case, or by digit 0 to 5; the empty text is `error`; None: no level."""
    if text.isascii() and text.isdigit() and len(text) == 1 and int(text) < len(DIGITS):
        return LEVELS[DIGITS[int(text)]]
    return ERROR if not text else LEVELS.get(text.lower())


def parse_added(text: str) -> Directive:
    """One item of a change at run time.

    Raises:
        ConfigError: it is neither a lower-case level nor `target=level` nor `target:level`.
    """
    if "=" in text:
        return Directive.parse(text)
    if text in LEVELS:
        return Directive(None, (), LEVELS[text])
    scoped = re.fullmatch(r"(.*[^:]):([A-Za-z0-5]+)", text)
    level = None if scoped is None else parse_level(scoped[2])
    if scoped is None or level is None:
        raise ConfigError(f"no level: {text}")
    return Directive(scoped[1], (), level)


class Filter:
    """Which events are wanted (the grammar of `RUST_LOG`); immutable. The most specific directive decides."""

    __slots__ = ("directives",)

    def __init__(self, directives: Iterable[Directive]) -> None:
        """A later directive for the same target and fields replaces the earlier one."""
        unique = {(d.target, d.fields): d for d in directives}
        self.directives = tuple(sorted(unique.values(), key=lambda d: d.rank, reverse=True))

    @classmethod
    def parse(cls, text: str) -> "Filter":
        """Read comma-separated directives; commas between brackets separate field names.

        Raises:
            ConfigError: a directive is malformed.
        """
        return cls(Directive.parse(item) for item in re.split(r",(?![^\[\]]*\}\])", text))

    def __str__(self) -> str:
        return ",".join(map(str, self.directives))

    def with_levels(self, text: str) -> "Filter":
        """This filter with a comma list added: each item a lower-case level or `target=level`.

        `target:level` is accepted too, as istioctl sends it; the level follows the last single colon.

        Raises:
            ConfigError: an item is anything else.
        """
        try:
            return Filter((*self.directives, *map(parse_added, text.split(","))))
        except ConfigError:
            raise ConfigError(f"Invalid level provided: {text}") from None

    def reach(self, target: str) -> int:
        """The most verbose level an event of that target can have and still be wanted."""
        found = OFF
        for directive in self.directives:
            if directive.target is None or target.startswith(directive.target):
                found = min(found, directive.level)
                if not directive.fields:
                    break
        return found

    def wants(self, target: str, level: int, fields: Collection[str]) -> bool:
        """Whether the event is to be written."""
        for directive in self.directives:
            if (directive.target is None or target.startswith(directive.target)) and all(
                name in fields for name in directive.fields
            ):
                return level >= directive.level
        return False

    def lowest(self) -> int:
        """The most verbose level of any target."""
        return min((directive.level for directive in self.directives), default=OFF)


# ---------------------------------------------------------------------------------------------- spans


class span:  # noqa: N801  a context manager by its use
    """A named stretch of work: events within the body, and in tasks started there, carry it and its fields.

    None fields are left out. A class, since every connection keeps one: a generator would keep five times
    as much.
    """

    __slots__ = ("_given", "_token", "name")

    def __init__(self, name: str, /, **fields: FieldValue) -> None:
        self.name = name
        self._given = tuple(fields.items())

    def __enter__(self) -> Self:
        self._token = current_spans.set((*current_spans.get(), self))
        return self

    def __exit__(self, *_: object) -> None:
        current_spans.reset(self._token)

    @property
    def fields(self) -> list[tuple[str, FieldValue]]:
        """What it tells of itself."""
        return [(key, value) for key, value in self._given if value is not None]

    @property
    def plain(self) -> str:
        """Its part of a plain line's scope."""
        inner = " ".join(f"{key}={plain_value(value)}" for key, value in self.fields)
        return f":{self.name}{{{inner}}}" if inner else f":{self.name}"


current_spans: ContextVar[tuple[span, ...]] = ContextVar("current_spans", default=())


# ----------------------------------------------------------------------------------------- text forms

ESCAPES: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
UNSAFE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
QUOTABLE: Final = re.compile(r"[\"\\\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def escape(found: re.Match[str]) -> str:
    """One unsafe character as an escape sequence of plain text."""
    character = found[0]
    if character in '"\\':
        return "\\" + character
    return ESCAPES.get(character) or f"\\u{{{ord(character):x}}}"


def one_line(text: str) -> str:
    """The text without line ends, tabs or control characters: these become escape sequences."""
    return UNSAFE.sub(escape, text)


def plain_value(value: FieldValue) -> str:
    """A field's value in a plain line: text quoted, `Bare` text, numbers and booleans not."""
    if isinstance(value, str):
        if isinstance(value, Bare):
            return value if value.isprintable() else one_line(value)
        if value.isprintable() and '"' not in value and "\\" not in value:
            return f'"{value}"'
        return f'"{QUOTABLE.sub(escape, value)}"'
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


JSON: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def json_value(value: FieldValue) -> str:
    """A field's value in a JSON line; numbers and booleans stay what they are."""
    return JSON.encode(value)


def plain_line(
    moment: str, level: int, target: str, message: str | None, fields: Fields, spans: tuple[span, ...] = ()
) -> str:
    """`TIME \\t LEVEL \\t SCOPE[:SPAN{...}]... \\t MESSAGE \\t k=v k=v`, without the line's end."""
    scope = target.removeprefix(OWN_PREFIX)
    for outer in spans:
        scope += outer.plain
    rendered = " ".join([f"{key}={plain_value(value)}" for key, value in fields if value is not None])
    head = f"{moment}\t{NAMES[level]}\t{scope}"
    if message is None:
        return f"{head}\t{rendered}" if rendered else head
    return f"{head}\t{message}\t{rendered}"


def json_line(
    moment: str, level: int, target: str, message: str | None, fields: Fields, spans: tuple[span, ...] = ()
) -> str:
    """`{"level":…,"time":…,"scope":…,"message":…, fields, spans}`, without the line's end."""
    parts = [f'{{"level":"{NAMES[level]}","time":"{moment}","scope":{json_value(target)}']
    if message is not None:
        parts.append(f'"message":{json_value(message)}')
    parts += [f"{json_value(key)}:{json_value(value)}" for key, value in fields if value is not None]
    parts += [f"{json_value(inner.name)}:{JSON.encode(dict(inner.fields))}" for inner in spans]
    return ",".join(parts) + "}"


class Clock:
    """Wall-clock time as lines show it: `2026-01-02T03:04:05.678901Z`. Formats each second once."""

    __slots__ = ("_second", "_text")

    def __init__(self) -> None:
        self._second = -1
        self._text = ""

    def text(self, now_ns: int | None = None) -> str:
        second, rest = divmod(time.time_ns() if now_ns is None else now_ns, 1_000_000_000)
        if second != self._second:
            self._text = time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(second))
            self._second = second
        return f"{self._text}{rest // 1000:06}Z"


def level_of(number: int) -> int:
    """One of our six levels for any level number of `logging`."""
    if number >= ERROR:
        return ERROR
    if number >= WARN:
        return WARN
    if number >= INFO:
        return INFO
    return DEBUG if number >= DEBUG else TRACE


_targets: dict[str, str] = {}


def target_of(name: str) -> str:
    """The target of a logger: our own modules may leave out `ztunnel::`."""
    found = _targets.get(name)
    if found is None:
        own = name.split("::", 1)[0] in OWN_ROOTS and name != "dns"
        if len(_targets) < 4096:
            _targets[name] = OWN_PREFIX + name if own else name
        return OWN_PREFIX + name if own else name
    return found


def get_logger(target: str) -> logging.Logger:
    """The logger of a target: `inpod::statemanager` is `ztunnel::inpod::statemanager`."""
    return logging.getLogger(target_of(target))


# --------------------------------------------------------------------------------------------- writer


class LineWriter:
    """Whole lines to one descriptor, in order, from any thread; see the module's theory of operation."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._waiting: deque[bytes] = deque()
        self._thread: threading.Thread | None = None
        self._writing = False
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)

    def write(self, line: bytes) -> None:
        """Write a line that ends with a newline. Blocks only while the queue is full."""
        with self._lock:
            if not self._waiting and not self._writing and len(line) <= ATOMIC_BYTES and self._is_free():
                try:
                    line = line[os.write(self._descriptor, line) :]
                except BlockingIOError:
                    pass
                except OSError:
                    return  # as the reference: a line that cannot be written is lost, the next is tried
                if not line:
                    return
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="log", daemon=True)
                self._thread.start()
            while len(self._waiting) >= QUEUE_LINES:
                self._changed.wait()
            self._waiting.append(line)
            self._changed.notify_all()

    def close(self, seconds: float = CLOSE_SECONDS) -> bool:
        """Wait that long for the queue to empty; whether it did. Later lines are still written."""
        with self._lock:
            return self._changed.wait_for(lambda: not self._waiting and not self._writing, seconds)

    def _is_free(self) -> bool:
        ready = self._poll.poll(0)
        return bool(ready) and ready[0][1] & select.POLLOUT != 0

    def _run(self) -> None:
        while True:
            with self._lock:
                while not self._waiting:
                    self._changed.wait()
                batch = b"".join(self._waiting.popleft() for _ in range(min(BATCH_LINES, len(self._waiting))))
                self._writing = True
                self._changed.notify_all()
            try:
                write_all(self._descriptor, batch)
            finally:
                with self._lock:
                    self._writing = False
                    self._changed.notify_all()


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of it, waiting as long as it takes; an error drops the rest."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            select.select([], [descriptor], [])
        except OSError:
            return


class StreamWriter:
    """Lines to a Python text stream that has no descriptor."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, line: bytes) -> None:
        self._stream.write(line.decode())

    def close(self, seconds: float = CLOSE_SECONDS) -> bool:
        self._stream.flush()
        return True


# ------------------------------------------------------------------------------------------ the output


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
