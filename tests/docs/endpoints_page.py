"""Makes docs/reference/endpoints.md: the paths of the three servers, which have to be those in the code."""

import sys
from typing import Final, cast

from tests.docs.page import print_or_check, table
from ztunnel_trio.admin.dump import ConfigDump
from ztunnel_trio.admin.server import admin_server, readiness_server, stats_server
from ztunnel_trio.facts.network import ADMIN_PORT, READINESS_PORT, STATS_PORT
from ztunnel_trio.supervise.readiness import Readiness

HEAD: Final = """\
# Endpoints

Plain HTTP/1.1. Paths are compared as they are, and what is not listed is 404. A request has two seconds to
arrive; a head of more than 8 KiB is refused with 431.
"""
TEXTS: Final = {  # path: (method, what it answers)
    "/": ("any", "a page with links to the others"),
    "/config_dump": (
        "any",
        "JSON: version, configuration, certificates without keys, workloads, services, policies, and the"
        " state of each pod's proxy. `istioctl ztunnel-config` reads it",
    ),
    "/logging": (
        "POST",
        "the log filter. `?level=debug` or `?level=access=debug,info` adds to it, `?reset` goes back to that"
        " of the start",
    ),
    "/quitquitquit": ("POST", "asks for the drain, as SIGTERM does, and answers at once"),
    "/metrics": (
        "any",
        "[metrics](metrics.md) as OpenMetrics text, compressed with gzip or deflate when asked for",
    ),
    "/stats/prometheus": ("any", "the same"),
    "/healthz/ready": ("GET", "200 `ready`, or 500 and the names of what is missing"),
}
PORTS: Final = (
    (ADMIN_PORT, "Administration", "on the loopback addresses only"),
    (STATS_PORT, "Metrics", "on every address"),
    (READINESS_PORT, "Readiness", "on every address"),
)


def page() -> str:
    """The whole page.

    Raises:
        KeyError: a server has a path this module does not describe.
    """
    servers = (
        admin_server([], dump=cast(ConfigDump, None), shut_down=lambda _: None),
        stats_server([], pieces=lambda: iter(())),
        readiness_server([], readiness=Readiness(began=0.0)),
    )
    parts = [HEAD]
    for (port, title, where), server in zip(PORTS, servers, strict=True):
        rows = [(f"`{path}`", *TEXTS[path]) for path in server.routes]
        parts.append(f"\n## {title}: port {port}, {where}\n\n{table(('Path', 'Method', 'Answer'), rows)}")
    return "".join(parts)


if __name__ == "__main__":
    sys.exit(print_or_check(page(), sys.argv[1:]))
