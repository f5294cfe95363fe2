"""Run an `async def` test under Trio, with a real or a fake clock. There is no pytest plugin to depend on."""

import functools
from collections.abc import Awaitable, Callable
from typing import ParamSpec, overload

import trio
import trio.testing

P = ParamSpec("P")


@overload
def trio_test(test: Callable[P, Awaitable[None]]) -> Callable[P, None]: ...
@overload
def trio_test(
    *, clock: trio.abc.Clock | None = None, autojump: bool = False, seconds: float = 30.0
) -> Callable[[Callable[P, Awaitable[None]]], Callable[P, None]]: ...
def trio_test(
    test: Callable[P, Awaitable[None]] | None = None,
    *,
    clock: trio.abc.Clock | None = None,
    autojump: bool = False,
    seconds: float = 30.0,
) -> Callable[P, None] | Callable[[Callable[P, Awaitable[None]]], Callable[P, None]]:
    """Make a plain test of a coroutine function; fixtures and parameters pass through.

    `@trio_test` uses the real clock and fails after `seconds`; `@trio_test(autojump=True)` a new
    `MockClock` that jumps whenever everything sleeps; `@trio_test(clock=...)` the clock given.
    """

    def decorate(test: Callable[P, Awaitable[None]]) -> Callable[P, None]:
        @functools.wraps(test)
        def run(*args: P.args, **kwargs: P.kwargs) -> None:
            chosen = trio.testing.MockClock(autojump_threshold=0) if autojump else clock

            async def main() -> None:
                if chosen is not None:  # a deadline on a jumping clock would be met at once
                    await test(*args, **kwargs)
                    return
                with trio.fail_after(seconds):
                    await test(*args, **kwargs)

            trio.run(main, clock=chosen)

        return run

    return decorate if test is None else decorate(test)
