"""Cancel a scenario at each of its steps in turn, and look what is left behind."""

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio
import trio.testing

MOST_STEPS = 2000


@dataclass(eq=False)
class CancelAtStep(trio.abc.Instrument):
    """Cancels `scope` before the n-th step of any task but its own runner's bookkeeping."""

    scope: trio.CancelScope
    steps_left: int
    fired: bool = field(default=False, init=False)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps_left -= 1
        if self.steps_left == 0:
            self.fired = True
            self.scope.cancel(reason="cancelled on purpose")


def open_descriptors() -> frozenset[str]:
    """The numbers of this process's open file descriptors, without the one used for looking."""
    return frozenset(name for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}"))


async def cancelled_everywhere(
    scenario: Callable[[], Awaitable[None]],
    *,
    check: Callable[[], None] | None = None,
    most_steps: int = MOST_STEPS,
    autojump: bool = True,
) -> int:
    """Run `scenario` again and again, cancelled at step 1, 2, … until it completes untouched.

    Each run is a Trio loop of its own (in this thread's stead: the caller's loop waits), on a jumping
    clock unless `autojump=False`. After each: no task is alive, no descriptor is open that was not
    before, and `check()` passes (ports, registries). Returns the number of steps that were tried.

    Raises:
        AssertionError: something was left behind, or `most_steps` did not suffice.
    """
    return await trio.to_thread.run_sync(
        lambda: cancelled_everywhere_now(scenario, check=check, most_steps=most_steps, autojump=autojump)
    )


def cancelled_everywhere_now(
    scenario: Callable[[], Awaitable[None]],
    *,
    check: Callable[[], None] | None = None,
    most_steps: int = MOST_STEPS,
    autojump: bool = True,
) -> int:
    """As `cancelled_everywhere`, from a plain test outside any Trio loop."""
    for step in range(1, most_steps + 1):
        if not cancelled_once(scenario, step, autojump=autojump):
            return step - 1
        if check is not None:
            check()
    raise AssertionError(f"the scenario has more than {most_steps} steps")


def cancelled_once(scenario: Callable[[], Awaitable[None]], step: int, *, autojump: bool) -> bool:
    """One run, cancelled at `step`; False if it completed before that step came."""

    async def main() -> bool:
        root = trio.lowlevel.current_root_task()
        assert root is not None
        before = open_descriptors()
        children = count_tasks()
        scope = trio.CancelScope()
        instrument = CancelAtStep(scope, step)
        trio.lowlevel.add_instrument(instrument)
        try:
            with scope:
                await scenario()
        finally:
            trio.lowlevel.remove_instrument(instrument)
        assert count_tasks() == children, f"cancelled at step {step}: tasks are still running"
        left = open_descriptors() - before
        assert not left, f"cancelled at step {step}: descriptors are still open: {describe(left)}"
        return instrument.fired

    clock = trio.testing.MockClock(autojump_threshold=0) if autojump else None
    return trio.run(main, clock=clock)


def count_tasks() -> int:
    """Tasks alive in this loop below the main task, itself included."""
    task = trio.lowlevel.current_task()
    pending, total = [task], 0
    while pending:
        total += 1
        pending.extend(child for nursery in pending.pop().child_nurseries for child in nursery.child_tasks)
    return total


def describe(descriptors: frozenset[str]) -> str:
    """Each descriptor with what it refers to, for the failure text."""
    found = []
    for name in sorted(descriptors, key=int):
        try:
            found.append(f"{name} -> {os.readlink(f'/proc/self/fd/{name}')}")
        except OSError:
            found.append(f"{name} -> gone")
    return ", ".join(found)
