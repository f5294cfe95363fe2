"""The three servers of operators: admin (loopback only), stats, readiness. What they show is handed in."""

import gzip
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

import trio

from ztunnel_trio.admin.dump import ConfigDump
from ztunnel_trio.admin.http import Handler, HttpRequest, HttpResponse, HttpServer, Send, plain
from ztunnel_trio.errors import ConfigError
from ztunnel_trio.net.listener import Listener
from ztunnel_trio.observe.log import Filter, current_filter, get_logger, set_filter, startup_filter
from ztunnel_trio.supervise.readiness import Readiness

log = get_logger("admin")

OPENMETRICS: Final = "application/openmetrics-text;charset=utf-8;version=1.0.0"
PLAIN_METRICS: Final = "text/plain; charset=utf-8"
CODINGS: Final[Mapping[str, str]] = {"gzip": "gzip", "x-gzip": "gzip", "deflate": "deflate"}
PREFERENCE: Final = ("gzip", "deflate", "identity")  # of equal weight the first one wins
SMALLEST_COMPRESSED: Final = 32  # bytes; ztunnel src/metrics/server.rs
IN_PLACE_BYTES: Final = 128 * 1024  # more is compressed in a thread
GZIP_BITS: Final = 16 + zlib.MAX_WBITS  # zlib's own way to ask for gzip's head

PAGES: Final = (
    ("quitquitquit", "shut down the server"),
    ("config_dump", "dump the current Ztunnel configuration"),
    ("logging", "query/changing logging levels"),
)
LOGGING_HELP: Final = """
usage: POST /logging\t\t\t\t\t\t(To list current level)
usage: POST /logging?level=<level>\t\t\t\t(To change global levels)
usage: POST /logging?level={mod1}={level1},{mod2}={level2}\t(To change specific mods' logging level)
usage: POST /logging?reset\t\t\t\t\t(To go back to the levels at start)

hint: loglevel:\terror|warn|info|debug|trace|off
hint: mod_name:\tthe module name, i.e. ztunnel::proxy, or access
"""


def admin_server(
    listeners: Sequence[Listener], *, dump: ConfigDump, shut_down: Callable[[str], None]
) -> HttpServer:
    """The admin server. `shut_down` asks for the drain and returns at once."""

    async def config_dump(request: HttpRequest) -> HttpResponse:
        return HttpResponse(content_type="application/json", body=await dump.begin())

    async def quit_now(request: HttpRequest) -> HttpResponse:
        if request.method != "POST":
            return HttpResponse(status=405)
        shut_down("received explicit shutdown signal")
        return plain(200, "shutdown now\n")

    routes: dict[str, Handler] = {
        "/": index,
        "/config_dump": config_dump,
        "/logging": logging_level,
        "/quitquitquit": quit_now,
    }
    return HttpServer("admin", listeners, routes)


async def index(request: HttpRequest) -> HttpResponse:
    """The page that lists the others."""
    rows = "".join(
        f'<tr class="home-row"><td><a href="{path}">{path}</a></td><td>{text}</td></tr>\n'
        for path, text in PAGES
    )
    page = (
        "<!DOCTYPE html>\n<html><head><title>Ztunnel Admin</title></head><body>\n<table>\n"
        f"<thead><tr><th>Command</th><th>Description</th></tr></thead>\n<tbody>\n{rows}</tbody>\n</table>\n"
        "</body></html>\n"
    )
    return HttpResponse(content_type="text/html; charset=utf-8", body=page.encode())


async def logging_level(request: HttpRequest) -> HttpResponse:
    """Report or change the log filter: `level` adds to it, `reset` starts from the one at start."""
    if request.method != "POST":
        return plain(405, f"Invalid HTTP method\n{LOGGING_HELP}")
    current, at_start = current_filter(), startup_filter()
    if current is None or at_start is None:
        return HttpResponse(status=500, body=b"logger is not initialized")
    parameters = request.parameters()
    level, is_reset = parameters.get("level", ""), "reset" in parameters
    if level or is_reset:
        base = at_start if is_reset else current
        try:
            current = base.with_levels(level) if level else base
        except ConfigError as error:
            return plain(400, f"{error}\n{LOGGING_HELP}")
        change_filter(current)
    return plain(200, f"current log level is {current}\n")


def change_filter(chosen: Filter) -> None:
    """Announce the filter, then use it."""
    log.info("new log filter is %s", chosen)
    set_filter(chosen)


def stats_server(listeners: Sequence[Listener], *, pieces: Callable[[], Iterator[bytes]]) -> HttpServer:
    """Metrics under both of their paths, with any method."""

    async def metrics(request: HttpRequest) -> HttpResponse:
        wants_openmetrics = any(
            item.partition(";")[0].lower() == "application/openmetrics-text"
            for value in request.all("accept")
            for item in value.split(",")
        )
        content_type = OPENMETRICS if wants_openmetrics else PLAIN_METRICS
        return await compressed(pieces(), content_type, request.all("accept-encoding"))

    return HttpServer("stats", listeners, {"/metrics": metrics, "/stats/prometheus": metrics})


async def compressed(pieces: Iterator[bytes], content_type: str, accepted: Sequence[str]) -> HttpResponse:
    """The body in the coding the client likes best among gzip, deflate and none.

    What is small is sent in one piece, the rest as it is made: others run between two pieces. Nothing
    acceptable is 406, with the body all the same (ztunnel's tower-http).
    """
    begun = list(islice(pieces, 2))
    is_small, first = len(begun) < 2, b"".join(begun)
    headers: tuple[tuple[str, str], ...] = (("vary", "accept-encoding"),)
    if is_small and len(first) < SMALLEST_COMPRESSED:
        return HttpResponse(content_type=content_type, body=first)
    coding = choose_coding(accepted)
    status = 406 if coding is None else 200
    if coding is None or coding == "identity":
        body = first if is_small else PlainPieces(first, pieces).send_to
        return HttpResponse(status=status, content_type=content_type, headers=headers, body=body)
    headers += (("content-encoding", coding),)
    body = compress(coding, first) if is_small else CompressedPieces(coding, first, pieces).send_to
    return HttpResponse(content_type=content_type, headers=headers, body=body)


@dataclass(frozen=True, slots=True)
class PlainPieces:
    """A body that is made while it is sent."""

    first: bytes
    rest: Iterator[bytes]

    async def send_to(self, send: Send) -> None:
        await send(self.first)
        for piece in self.rest:
            await send(piece)
            await trio.lowlevel.checkpoint()


@dataclass(frozen=True, slots=True)
class CompressedPieces:
    """The same, compressed, some pieces at a time in a thread: a megabyte takes 20 ms."""

    coding: str
    first: bytes
    rest: Iterator[bytes]

    async def send_to(self, send: Send) -> None:
        packer = zlib.compressobj(6, wbits=GZIP_BITS if self.coding == "gzip" else zlib.MAX_WBITS)
        waiting, size = [self.first], len(self.first)
        for piece in self.rest:
            waiting.append(piece)
            size += len(piece)
            if size >= IN_PLACE_BYTES:
                await send(await trio.to_thread.run_sync(packer.compress, b"".join(waiting)))
                waiting, size = [], 0
            await trio.lowlevel.checkpoint()
        await send(packer.compress(b"".join(waiting)) + packer.flush())


def compress(coding: str, body: bytes) -> bytes:
    """gzip, or zlib's format, which HTTP calls deflate (RFC 9110 8.4.1.2)."""
    return gzip.compress(body, 6, mtime=0) if coding == "gzip" else zlib.compress(body, 6)


def choose_coding(accepted: Sequence[str]) -> str | None:
    """The best of `PREFERENCE` by weight; None when all are refused (RFC 9110 12.5.3)."""
    weights: dict[str, float] = {}
    others: float | None = None
    for item in ",".join(accepted).split(","):
        name, _, parameters = item.strip().partition(";")
        name = name.strip().lower()
        weight = parse_weight(parameters)
        if weight is None or not name:
            continue
        if name == "*":
            others = weight
        elif name == "identity" or name in CODINGS:
            weights[CODINGS.get(name, name)] = weight
    if others is not None:
        for name in PREFERENCE:
            weights.setdefault(name, others)
    weights.setdefault("identity", 0.0001)  # acceptable unless refused, but liked less than what was named
    best = max(PREFERENCE, key=lambda name: weights.get(name, 0.0))
    return best if weights.get(best, 0.0) > 0 else None


def parse_weight(parameters: str) -> float | None:
    """The `q` of an item, 1 without one; None when it is malformed."""
    text = parameters.replace(" ", "").lower()
    if not text:
        return 1.0
    name, _, value = text.partition("=")
    try:
        weight = float(value)
    except ValueError:
        return None
    return weight if name == "q" and 0 <= weight <= 1 else None


def readiness_server(listeners: Sequence[Listener], *, readiness: Readiness) -> HttpServer:
    """Whether the process is ready, and if not, for what it waits."""

    async def ready(request: HttpRequest) -> HttpResponse:
        if request.method != "GET":
            return HttpResponse(status=405)
        if readiness.is_ready:
            return plain(200, "ready\n")
        return plain(500, f"not ready, pending: {', '.join(readiness.pending())}\n")

    return HttpServer("readiness", listeners, {"/healthz/ready": ready})
