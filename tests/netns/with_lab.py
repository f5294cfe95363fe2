"""Run an `async def` test against a lab: `@with_lab()` passes it a `Lab`, fixtures and parameters follow.

The lab has its nodes and control plane; pods and `await lab.start()` are the test's. A test that fails leaves
the end of the proxies' logs in its output.
"""

import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import Concatenate, ParamSpec

import trio

from ztunnel_trio.lab.mesh import Lab, LabSettings, open_lab

P = ParamSpec("P")
LabTest = Callable[Concatenate[Lab, P], Awaitable[None]]

_TAIL_LINES = 40


def with_lab(
    settings: LabSettings | None = None, *, seconds: float = 60.0
) -> Callable[[LabTest[P]], Callable[P, None]]:
    """Make a plain test of a coroutine function that takes a lab first."""

    def decorate(test: LabTest[P]) -> Callable[P, None]:
        def run(*args: P.args, **kwargs: P.kwargs) -> None:
            async def main() -> None:
                with trio.fail_after(seconds):
                    async with open_lab(settings or LabSettings()) as lab:
                        try:
                            await test(lab, *args, **kwargs)
                        except BaseException:
                            _show_logs(lab)
                            raise

            trio.run(main)

        # pytest reads the signature for fixtures: the test's own, without the lab
        functools.update_wrapper(run, test)
        own = inspect.signature(test)
        run.__signature__ = own.replace(parameters=list(own.parameters.values())[1:])  # type: ignore[attr-defined]
        return run

    return decorate


def _show_logs(lab: Lab) -> None:
    for node in lab.nodes.values():
        print(f"--- {node.name}")  # noqa: T201
        print("\n".join(node.log.raw()[-_TAIL_LINES:]))  # noqa: T201
