"""A scene that the tests of a module share: one Trio run in a thread of its own, set up and torn down once.

    scene = share(open_scene)  # the module's fixture

    @in_scene
    async def test_something(scene: Scene) -> None: ...

Every test runs as a task of that run. After it the proxies must still be there and their logs without a
traceback; what a test changes in the mesh it changes back.
"""

import functools
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Concatenate, Generic, ParamSpec, Protocol, TypeVar

import pytest
import trio

from ztunnel_trio.lab.mesh import Lab

TEST_SECONDS = 90.0  # adding 150 pods takes half a minute on a slow machine
OPEN_SECONDS = 60.0
_TAIL_LINES = 25


class HasLab(Protocol):
    """What every scene has."""

    @property
    def lab(self) -> Lab: ...


P = ParamSpec("P")
S = TypeVar("S", bound=HasLab)
OpenScene = Callable[[], AbstractAsyncContextManager[S]]


class Job(Generic[S]):
    """One test handed to the scene's own task, and how it ended."""

    def __init__(self, test: Callable[[S], Awaitable[None]]) -> None:
        self.test = test
        self.done = threading.Event()
        self.failure: BaseException | None = None


class Running(Generic[S]):
    """A scene kept open in a thread. Its tests are run by the task that opened it, in that task's context."""

    def __init__(self, open_scene: OpenScene[S]) -> None:
        self._open = open_scene
        self._opened = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="scene", daemon=True)

    def start(self) -> None:
        """Open the scene; what keeps it from opening is raised here."""
        self._thread.start()
        self._opened.wait()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Close it; what goes wrong, or went wrong before, is raised here."""
        if self._thread.is_alive():
            trio.from_thread.run_sync(self._jobs.close, trio_token=self._token)
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def run(self, test: Callable[[S], Awaitable[None]]) -> None:
        """Run one test in the scene."""
        assert self._thread.is_alive(), "the scene has collapsed"
        job = Job(test)
        trio.from_thread.run_sync(self._jobs.send_nowait, job, trio_token=self._token)
        job.done.wait()
        if job.failure is not None:
            raise job.failure

    def _run(self) -> None:
        try:
            trio.run(self._main)
        except BaseException as error:  # noqa: BLE001  handed to the thread that waits
            self._failure = error
        finally:
            self._opened.set()

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._jobs, jobs = trio.open_memory_channel[Job[S]](1)
        with trio.fail_after(OPEN_SECONDS) as opening:
            async with self._open() as scene:
                opening.deadline = float("inf")
                self._opened.set()
                async for job in jobs:
                    try:
                        await run_test(scene, job.test)
                    except trio.Cancelled:
                        job.failure = AssertionError("the scene has collapsed")
                        raise
                    except BaseException as error:  # noqa: BLE001  handed to the thread that waits
                        job.failure = error
                    finally:
                        job.done.set()


async def run_test(scene: S, test: Callable[[S], Awaitable[None]]) -> None:
    """One test, with what has to hold after every test; one that fails shows what the proxies wrote."""
    marks = {name: node.log.mark() for name, node in scene.lab.nodes.items()}
    try:
        with trio.fail_after(TEST_SECONDS):
            await test(scene)
        check_proxies(scene.lab, marks)
    except BaseException:
        for name, node in scene.lab.nodes.items():
            print(f"--- {name}")  # noqa: T201
            print("\n".join(node.log.raw(marks.get(name, 0))[-_TAIL_LINES:]))  # noqa: T201
        raise


def check_proxies(lab: Lab, marks: Mapping[str, int]) -> None:
    """Every proxy that was started still runs, and has met no surprise since its mark."""
    for name, node in lab.nodes.items():
        text = "\n".join(node.log.raw(marks.get(name, 0)))
        assert "Traceback" not in text, text
        assert node.proxy.returncode is None, text


def share(open_scene: OpenScene[S]) -> Callable[[], Iterator[Running[S]]]:
    """The module's fixture `scene`."""

    def scene() -> Iterator[Running[S]]:
        running = Running(open_scene)
        running.start()
        yield running
        running.stop()

    return pytest.fixture(scope="module", name="scene")(scene)


def in_scene(
    test: Callable[Concatenate[S, P], Awaitable[None]],
) -> Callable[Concatenate[Running[S], P], None]:
    """Make a plain test of a coroutine function whose first argument is the fixture `scene`."""

    def run(scene: Running[S], *args: P.args, **kwargs: P.kwargs) -> None:
        async def main(inside: S) -> None:
            await test(inside, *args, **kwargs)

        scene.run(main)

    functools.update_wrapper(run, test)
    return run  # type: ignore[return-value]  # pytest hands `scene` over by name
