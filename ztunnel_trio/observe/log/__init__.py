"""The log: one event, one line, one write; plain or JSON; a filter that may change while we run.

Theory of operation. The standard `logging` module carries events here, with three additions: the
targets operators filter by (`ztunnel::proxy::outbound`, `access`; also accepted without `ztunnel::`),
fields (`extra={"fields": {...}}`), and spans, a context variable that child tasks inherit. `configure`
installs the one handler. Each known logger gets the most verbose level its target may have, so a
disabled call costs one comparison; the handler decides exactly. `write_event` is the way around
`logging` for lines on the path of every connection.

What other rooms use is named here; the rest of each concept is in its own module.
"""

from ztunnel_trio.observe.log.fields import Bare, FieldValue
from ztunnel_trio.observe.log.filter import Filter
from ztunnel_trio.observe.log.levels import DEBUG, ERROR, INFO, TRACE, WARN
from ztunnel_trio.observe.log.output import (
    configure,
    current_filter,
    is_enabled,
    set_filter,
    startup_filter,
    unconfigure,
    write_event,
)
from ztunnel_trio.observe.log.spans import span
from ztunnel_trio.observe.log.targets import get_logger

__all__ = [
    "DEBUG",
    "ERROR",
    "INFO",
    "TRACE",
    "WARN",
    "Bare",
    "FieldValue",
    "Filter",
    "configure",
    "current_filter",
    "get_logger",
    "is_enabled",
    "set_filter",
    "span",
    "startup_filter",
    "unconfigure",
    "write_event",
]
