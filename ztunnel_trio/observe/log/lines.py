"""One event as one line: plain or JSON, and the time in front of it."""

import time

from ztunnel_trio.observe.log.fields import JSON, Fields, json_value, plain_value
from ztunnel_trio.observe.log.levels import NAMES
from ztunnel_trio.observe.log.spans import span
from ztunnel_trio.observe.log.targets import OWN_PREFIX


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
