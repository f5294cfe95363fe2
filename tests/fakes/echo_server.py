"""A TLS server for localhost that echoes, and what its clients need to know of it."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from tests.fakes.pki import Authority
from ztunnel_trio.control import grpc
from ztunnel_trio.control.grpc import PemRoots, Served, ServerCall, Target

ECHO = "/test/Echo"
ROOT = Authority.root("root")
TRUST = PemRoots((ROOT.der,))


async def echo(call: ServerCall) -> None:
    while (message := await call.receive()) is not None:
        await call.send(message)


@asynccontextmanager
async def serving(place: Path, handler: Callable[[ServerCall], object] = echo) -> AsyncIterator[Served]:
    """A TLS server on loopback under the control loop."""
    context = grpc.server_context(str(place / "chain.pem"), str(place / "key.pem"))
    async with grpc.open_control_loop(), trio.open_nursery() as nursery:

        async def start(*, task_status: "trio.TaskStatus[Served]") -> None:
            await grpc.serve({ECHO: handler}, ssl_context=context, task_status=task_status)  # type: ignore[dict-item]

        served: Served = await nursery.start(start)
        yield served
        nursery.cancel_scope.cancel()


def to(port: int, host: str = "localhost", alternative_name: str | None = None) -> Target:
    return Target(host=host, port=port, alternative_name=alternative_name)
