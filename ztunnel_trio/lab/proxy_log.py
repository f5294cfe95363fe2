"""Reading what a proxy writes: its log lines, plain or JSON, as dictionaries of text.

A plain line is `time TAB level TAB target and spans TAB message TAB key=value ...`; strings are quoted as in
Rust and JSON, so both forms give the same entry.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

_FIELD: Final = re.compile(r'([\w.]+)=("(?:[^"\\]|\\.)*"|\S+)')
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z")
_HEAD: Final = frozenset(("time", "level", "scope", "message"))
_POLL_SECONDS: Final = 0.01
_REASON_SECONDS: Final = 2.0
_OTHER_SECONDS: Final = 0.5
_DIRECTIONS: Final = ("outbound", "inbound")


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line; `scope` is the target (with its spans), `fields` whatever else it says."""

    level: str
    scope: str
    message: str
    fields: Mapping[str, str]

    def get(self, name: str) -> str:
        """A field's text, empty when the line has not got it."""
        return self.fields.get(name, "")

    def has(self, wanted: Mapping[str, str]) -> bool:
        """Whether each of these fields is there with this text."""
        return all(self.fields.get(name) == text for name, text in wanted.items())


def parse_line(line: str) -> LogLine | None:
    """Read a line; None for what is none (a traceback, the configuration's dump)."""
    if line.startswith("{"):
        return _parse_json(line)
    parts = line.rstrip("\n").split("\t")
    if len(parts) < 4 or not _TIME.fullmatch(parts[0]):
        return None
    text = parts[4] if len(parts) > 4 else ""
    fields = {name: _unquoted(value) for name, value in _FIELD.findall(text)}
    return LogLine(parts[1].lower(), parts[2], parts[3], fields)


def _parse_json(line: str) -> LogLine | None:
    try:
        entry: object = json.loads(line)
    except ValueError:
        return None
    if not isinstance(entry, dict):
        return None
    fields = {str(name): str(value) for name, value in entry.items() if name not in _HEAD}
    return LogLine(
        str(entry.get("level", "")), str(entry.get("scope", "")), str(entry.get("message", "")), fields
    )


def _unquoted(value: str) -> str:
    if not value.startswith('"'):
        return value
    try:
        return str(json.loads(value))
    except ValueError:  # an escape only Rust has
        return value[1:-1]


class ProxyLog:
    """A growing log file. A mark is a position in it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def mark(self) -> int:
        """The present end."""
        return self.path.stat().st_size if self.path.exists() else 0

    def raw(self, mark: int = 0) -> list[str]:
        """The complete lines since a mark, as they are."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(mark)
            text = file.read().decode(errors="replace")
        return text.split("\n")[:-1]

    def lines(self, mark: int = 0) -> list[LogLine]:
        """The complete lines since a mark."""
        return [line for raw in self.raw(mark) if (line := parse_line(raw)) is not None]

    def access(self, mark: int = 0, wanted: Mapping[str, str] | None = None) -> list[LogLine]:
        """The access lines of connections that ended or were refused since a mark, those whose fields have
        these texts: `{"src.workload": "sleep"}`."""
        return [
            line
            for line in self.lines(mark)
            if line.scope == "access" and line.message != "connection opened" and line.has(wanted or {})
        ]

    async def wait_access(
        self, mark: int = 0, wanted: Mapping[str, str] | None = None, *, count: int = 1
    ) -> list[LogLine]:
        """As `access`, waiting until there are so many; the caller sets the deadline."""
        while len(found := self.access(mark, wanted)) < count:  # noqa: ASYNC110  a file cannot tell
            await trio.sleep(_POLL_SECONDS)
        return found

    async def wait_text(self, text: str, mark: int = 0) -> str:
        """The first line since a mark that holds a text, waited for; the caller sets the deadline."""
        while not (found := [line for line in self.raw(mark) if text in line]):  # noqa: ASYNC110  nor here
            await trio.sleep(_POLL_SECONDS)
        return found[0]


def proxy_logs(directory: Path) -> dict[str, ProxyLog]:
    """The logs of a lab's proxies by the node's name; the lab may be another process's."""
    return {path.parent.name: ProxyLog(path) for path in sorted(directory.glob("*/proxy.log"))}


async def reasons(logs: Mapping[str, ProxyLog], marks: Mapping[str, int]) -> list[str]:
    """What the proxies wrote since these marks of connections that failed: `node-2 inbound: …`.

    Waits for the first such line a little while, since it is written when the connection has ended, and then
    for the other proxy's.
    """
    found: list[str] = []
    with trio.move_on_after(_REASON_SECONDS) as waiting:
        while len(found) < len(_DIRECTIONS):
            await trio.sleep(_POLL_SECONDS)
            failed = [
                (node, line)
                for node, log in logs.items()
                for line in log.access(marks[node])
                if line.get("error")
            ]
            if failed and not found:
                waiting.deadline = trio.current_time() + _OTHER_SECONDS
            found = [f"{node} {line.get('direction')}: {line.get('error')}" for node, line in failed]
    return found
