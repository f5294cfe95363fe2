"""Traffic that a fault elsewhere must not disturb: new connections all the time, and some that live long.

    async with undisturbed(client, targets) as traffic:
        ...  # the fault
    # not one connection has failed, been refused, cut or stalled

Every connection proves itself with bytes: what is sent has to come back.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from tests.netns.tools import HELLO, read_all, read_exactly
from ztunnel_trio.lab.mesh import Pod
from ztunnel_trio.model.address import SocketAddress

NEW_EVERY_SECONDS = 0.05
SAY_EVERY_SECONDS = 0.05
PATIENCE_SECONDS = 10.0


@dataclass(eq=False)
class Traffic:
    """What has been done so far. `failures` is empty as long as nobody has felt anything."""

    opened: int = 0
    said: int = 0
    failures: list[str] = field(default_factory=list)

    async def open_one(self, client: Pod, target: SocketAddress) -> None:
        """One short connection."""
        try:
            with trio.fail_after(PATIENCE_SECONDS):
                async with await client.connect(target) as stream:
                    await stream.send_all(HELLO)
                    await stream.send_eof()
                    answer = await read_all(stream)
            if answer != HELLO:
                self.failures.append(f"new connection to {target}: {answer!r}")
        except (OSError, trio.BrokenResourceError, trio.TooSlowError) as error:
            self.failures.append(f"new connection to {target}: {error!r}")
        self.opened += 1

    async def keep_opening(self, client: Pod, targets: Sequence[SocketAddress]) -> None:
        async with trio.open_nursery() as nursery:
            turn = 0
            while True:
                nursery.start_soon(self.open_one, client, targets[turn % len(targets)])
                turn += 1
                await trio.sleep(NEW_EVERY_SECONDS)

    async def keep_talking(self, client: Pod, target: SocketAddress) -> None:
        """One long connection."""
        try:
            async with await client.connect(target) as stream:
                while True:
                    with trio.fail_after(PATIENCE_SECONDS):
                        await stream.send_all(HELLO)
                        answer = await read_exactly(stream, len(HELLO))
                    if answer != HELLO:
                        self.failures.append(f"long connection to {target} ended: {answer!r}")
                        return
                    self.said += 1
                    await trio.sleep(SAY_EVERY_SECONDS)
        except (OSError, trio.BrokenResourceError, trio.TooSlowError) as error:
            self.failures.append(f"long connection to {target}: {error!r}")


@asynccontextmanager
async def undisturbed(client: Pod, targets: Sequence[SocketAddress]) -> AsyncGenerator[Traffic, None]:
    """Traffic from a pod to these addresses for the body's time, and a look at it at the end."""
    traffic = Traffic()
    async with trio.open_nursery() as nursery:
        for target in targets:
            nursery.start_soon(traffic.keep_talking, client, target)
        nursery.start_soon(traffic.keep_opening, client, targets)
        with trio.fail_after(PATIENCE_SECONDS):
            while traffic.opened < len(targets) or traffic.said < len(targets):  # noqa: ASYNC110  it flows
                await trio.sleep(0.01)
        yield traffic
        opened, said = traffic.opened, traffic.said
        await trio.sleep(0.3)  # afterwards it flows as before
        assert traffic.opened > opened
        assert traffic.said > said
        nursery.cancel_scope.cancel(reason="the fault is over")
    assert traffic.failures == [], f"{len(traffic.failures)} of {traffic.opened}: {traffic.failures[:5]}"
