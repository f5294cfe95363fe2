"""trio-asyncio, imported; the rest of the room takes it from here.

CPython 3.14 took two names out of asyncio that trio-asyncio 0.16 uses while it is imported: the base of event
loop policies, now private, and that of child watchers, which are gone. For the versions named here, and no
other, they are lent to asyncio for that time; nothing we do needs either. docs/decisions/0007 says when this
ends.
"""

import asyncio  # noqa: TID251  this room is the fence
import sys
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from importlib import metadata
from typing import Final

from ztunnel_trio.errors import Unusable

LENT: Final[Mapping[tuple[int, int], frozenset[str]]] = {(3, 14): frozenset({"0.16.0"})}
"""CPython, and the versions of trio-asyncio that miss names in it."""


def versions() -> str:
    """What carries the event loop here, for whoever has to read that it does not."""
    libraries = " and ".join(f"{name} {metadata.version(name)}" for name in ("trio-asyncio", "grpclib"))
    return f"{libraries} on CPython {'.'.join(map(str, sys.version_info[:3]))}"


@contextmanager
def names_lent() -> Generator[None, None, None]:
    """For the body's time have asyncio give no warnings, and the names where it is known to lack them."""
    lent: list[tuple[object, str, object]] = []
    if metadata.version("trio-asyncio") in LENT.get(sys.version_info[:2], ()):
        base: object = vars(asyncio.events)["_BaseDefaultEventLoopPolicy"]
        lent = [
            (asyncio.events, "BaseDefaultEventLoopPolicy", base),
            (asyncio, "AbstractChildWatcher", object),
        ]
    for owner, name, value in lent:
        setattr(owner, name, value)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # child watchers since 3.12, policies since 3.14
            yield
    finally:
        for owner, name, _ in lent:
            delattr(owner, name)


try:
    with names_lent():
        import trio_asyncio
except (ImportError, AttributeError) as error:
    raise Unusable(f"cannot load {versions()}: {error}") from error

__all__ = ["trio_asyncio", "versions"]
