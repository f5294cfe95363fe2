import gzip
import io
import logging
import zlib
from collections.abc import Iterator

import pytest
import trio

from tests.fakes.trio_test import trio_test
from ztunnel_trio.admin.dump import ConfigDump, Whole
from ztunnel_trio.admin.http import HttpRequest, HttpResponse, HttpServer
from ztunnel_trio.admin.server import admin_server, choose_coding, readiness_server, stats_server
from ztunnel_trio.observe.log import configure, unconfigure
from ztunnel_trio.observe.log.filter import ALWAYS
from ztunnel_trio.supervise.readiness import Readiness


def request(path: str, method: str = "GET", headers: list[tuple[str, str]] | None = None) -> HttpRequest:
    found, _, query = path.partition("?")
    return HttpRequest(method, found, query, headers or [])


class Admin:
    """An admin server asked without sockets."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        dump = ConfigDump({"config": Whole(lambda: {"b": 1, "a": 2})})
        self.server = admin_server([], dump=dump, shut_down=self.reasons.append)

    async def ask(self, path: str, method: str = "GET") -> HttpResponse:
        return await self.server.answer(request(path, method))


@pytest.fixture
def admin() -> Iterator[Admin]:
    stream = io.StringIO()
    configure(None, stream=stream)
    yield Admin()
    unconfigure()


async def body_of(response: HttpResponse) -> str:
    if isinstance(response.body, bytes):
        return response.body.decode()
    pieces: list[bytes] = []

    async def collect(piece: bytes) -> None:
        pieces.append(piece)

    await response.body(collect)
    return b"".join(pieces).decode()


def told(admin: Admin, path: str, method: str = "POST") -> tuple[int, str]:
    async def main() -> tuple[int, str]:
        response = await admin.ask(path, method)
        return response.status, await body_of(response)

    return trio.run(main)


def test_the_front_page_links_every_other(admin: Admin) -> None:
    status, page = told(admin, "/", "GET")

    assert status == 200
    for path in ("quitquitquit", "config_dump", "logging"):
        assert f'<a href="{path}">' in page


def test_the_dump_is_sorted_json(admin: Admin) -> None:
    assert told(admin, "/config_dump", "DELETE") == (
        200,
        '{\n  "config": {\n    "a": 2,\n    "b": 1\n  }\n}',
    )


def test_readiness_and_unknown_paths_are_not_here(admin: Admin) -> None:
    assert told(admin, "/healthz/ready") == (404, "")
    assert told(admin, "/config_dump/") == (404, "")


def test_quitting_is_asked_for_by_post_only(admin: Admin) -> None:
    assert told(admin, "/quitquitquit", "GET") == (405, "")
    assert admin.reasons == []

    assert told(admin, "/quitquitquit") == (200, "shutdown now\n")
    assert admin.reasons == ["received explicit shutdown signal"]


@pytest.mark.parametrize(
    ("path", "filter_text"),
    [
        ("", "info"),
        ("?level=", "info"),
        ("?level=debug", "debug"),
        ("?reset&level=access=debug,info", "access=debug,info"),
        ("?level=access:debug", "access=debug,info"),
        ("?level=ztunnel::proxy%3Ddebug", "ztunnel::proxy=debug,info"),
        ("?level=off", "off"),
        ("?level=debug&level=warn", "warn"),
    ],
)
def test_the_filter_is_reported_and_changed(admin: Admin, path: str, filter_text: str) -> None:
    assert told(admin, f"/logging{path}") == (200, f"current log level is {ALWAYS},{filter_text}\n")


def test_a_change_adds_and_a_reset_starts_over(admin: Admin) -> None:
    told(admin, "/logging?level=access=debug")
    assert (
        told(admin, "/logging?level=dns=trace")[1]
        == f"current log level is {ALWAYS},access=debug,dns=trace,info\n"
    )
    assert logging.getLogger("access").isEnabledFor(logging.DEBUG)

    assert told(admin, "/logging?reset&level=dns=warn")[1] == f"current log level is {ALWAYS},dns=warn,info\n"
    assert told(admin, "/logging?reset=")[1] == f"current log level is {ALWAYS},info\n"
    assert not logging.getLogger("access").isEnabledFor(logging.DEBUG)


@pytest.mark.parametrize("level", ["INFO", "warning", "ztunnel::proxy", "a=loud", "info,"])
def test_a_bad_level_is_named_and_help_given(admin: Admin, level: str) -> None:
    status, text = told(admin, f"/logging?level={level}")

    assert status == 400
    assert text.startswith(f"Invalid level provided: {level}\n\nusage: POST /logging")
    assert told(admin, "/logging") == (200, f"current log level is {ALWAYS},info\n")


def test_only_post_touches_the_filter(admin: Admin) -> None:
    status, text = told(admin, "/logging?level=debug", "GET")

    assert status == 405
    assert text.startswith("Invalid HTTP method\n")
    assert "usage: POST /logging" in text


def test_without_a_log_there_is_no_filter() -> None:
    assert told(Admin(), "/logging") == (500, "logger is not initialized")


BODY = b"# EOF\n" * 100


def stats(body: bytes = BODY) -> HttpServer:
    return stats_server([], pieces=lambda: (body[at : at + 30_000] for at in range(0, len(body), 30_000)))


@pytest.mark.parametrize(
    ("accept", "openmetrics"),
    [
        ([], False),
        (["application/json"], False),
        (["application/openmetrics-text;version=1.0.0"], True),
        (["text/html", "Application/OpenMetrics-Text"], True),
        (["text/plain,application/openmetrics-text;q=0.1"], True),
        (["text/plain, application/openmetrics-text"], False),  # as the reference: blanks are not trimmed
    ],
)
def test_the_content_type_follows_accept(accept: list[str], *, openmetrics: bool) -> None:
    async def main() -> None:
        for path in ("/metrics", "/stats/prometheus"):
            response = await stats().answer(request(path, "POST", [("accept", value) for value in accept]))
            assert response.content_type == (
                "application/openmetrics-text;charset=utf-8;version=1.0.0"
                if openmetrics
                else "text/plain; charset=utf-8"
            )
            assert response.body == BODY

    trio.run(main)


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        ([], "identity"),
        ([""], "identity"),
        (["gzip"], "gzip"),
        (["x-gzip"], "gzip"),
        (["GZIP;q=1.0"], "gzip"),
        (["deflate"], "deflate"),
        (["deflate, gzip"], "gzip"),
        (["deflate, gzip;q=0.5"], "deflate"),
        (["zstd, br"], "identity"),
        (["zstd", "gzip;q=0.1"], "gzip"),
        (["*"], "gzip"),
        (["gzip;q=0, *"], "deflate"),
        (["identity;q=0.9, gzip;q=0.1"], "identity"),
        (["gzip;q=0"], "identity"),
        (["gzip;q=nonsense"], "identity"),
        (["gzip;q=2"], "identity"),
        (["identity;q=0"], None),
        (["*;q=0"], None),
        (["*;q=0, gzip"], "gzip"),
    ],
)
def test_the_coding_follows_accept_encoding(accepted: list[str], coding: str | None) -> None:
    assert choose_coding(accepted) == coding


async def whole(response: HttpResponse) -> bytes:
    """A body, also one that writes itself."""
    if isinstance(response.body, bytes):
        return response.body
    pieces: list[bytes] = []

    async def collect(piece: bytes) -> None:
        pieces.append(piece)

    await response.body(collect)
    return b"".join(pieces)


@pytest.mark.parametrize("size", [600, 200_000])
def test_compressed_bodies_unpack_to_the_same(size: int) -> None:
    body = b"x" * size

    async def main() -> None:
        for coding in ("gzip", "deflate"):
            response = await stats(body).answer(request("/metrics", headers=[("accept-encoding", coding)]))
            assert response.headers == (("vary", "accept-encoding"), ("content-encoding", coding))
            packed = await whole(response)
            assert (gzip.decompress(packed) if coding == "gzip" else zlib.decompress(packed)) == body

    trio.run(main)


@trio_test
async def test_nothing_acceptable_is_406_with_the_body() -> None:
    response = await stats().answer(request("/metrics", headers=[("accept-encoding", "identity;q=0")]))

    assert (response.status, response.body) == (406, BODY)


@trio_test
async def test_tiny_bodies_are_left_alone() -> None:
    response = await stats(b"# EOF\n").answer(request("/metrics", headers=[("accept-encoding", "gzip")]))

    assert (response.headers, response.body) == ((), b"# EOF\n")


@trio_test
async def test_readiness_names_what_is_pending() -> None:
    readiness = Readiness()
    proxy, mesh = readiness.gate("proxy"), readiness.gate("state manager")
    server = readiness_server([], readiness=readiness)

    waiting = await server.answer(request("/healthz/ready"))
    proxy.open()
    mesh.open()
    ready = await server.answer(request("/healthz/ready"))

    assert (waiting.status, waiting.body) == (500, b"not ready, pending: proxy, state manager\n")
    assert (ready.status, ready.body, ready.content_type) == (200, b"ready\n", "text/plain")
    for method in ("POST", "HEAD", "DELETE"):
        assert (await server.answer(request("/healthz/ready", method))).status == 405
    assert (await server.answer(request("/"))).status == 404
