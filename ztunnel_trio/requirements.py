"""Whether the libraries whose insides are used here are of the versions this was built for.

An installer sees to that once; afterwards anything may replace a library. What is asked for stands in the
package's own metadata only (`pyproject.toml`). Of most libraries the public interface is used and nothing is
asked; Trio is asked for a way in and has another where there is none (`net.engine`).
"""

import re
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Final

from ztunnel_trio.errors import Unusable

PROJECT: Final = "ztunnel-trio"
INSIDES: Final = frozenset({"betterproto2", "grpclib", "h2", "hpack", "protobuf", "trio-asyncio"})
_REQUIREMENT: Final = re.compile(r"(?P<name>[\w-]+)(?P<bounds>[<>=\d.,*]*)")
_BOUND: Final = re.compile(r"(?P<how>[<>=]=?)(?P<version>[\d.]+)(?P<any>\*?)")


def check() -> None:
    """See that everything in `INSIDES` is as asked for; a source tree that is not installed asks for nothing.

    Raises:
        Unusable: names each that is not.
    """
    try:
        wanted = metadata.requires(PROJECT) or ()
    except metadata.PackageNotFoundError:
        return
    if told := unmet(wanted, metadata.version):
        raise Unusable("; ".join(told))


def unmet(wanted: Sequence[str], version_of: Callable[[str], str]) -> list[str]:
    """What is wrong with libraries in `INSIDES`: each that is missing or out of bounds, with its version."""
    told = []
    for text in wanted:
        found = _REQUIREMENT.match(text)
        if found is None or found["name"] not in INSIDES:
            continue
        try:
            version = version_of(found["name"])
        except metadata.PackageNotFoundError:
            told.append(f"{found['name']} is not installed")
            continue
        if not is_within(version, found["bounds"]):
            told.append(f"{found['name']} {version} cannot be used, it must be {found['bounds']}")
    return told


def is_within(version: str, bounds: str) -> bool:
    """Whether a version keeps to bounds such as `>=4.4,<5` or `==0.10.*`, by its release number alone."""
    return all(_keeps(numbers(version), bound) for bound in _BOUND.finditer(bounds))


def _keeps(have: tuple[int, ...], bound: re.Match[str]) -> bool:
    limit = numbers(bound["version"])
    match bound["how"]:
        case "==":
            return have[: len(limit)] == limit if bound["any"] else have == limit
        case ">=":
            return have >= limit
        case "<":
            return have < limit
        case how:
            raise ValueError(f"{how}{bound['version']}: no such bound is used here")


def numbers(version: str) -> tuple[int, ...]:
    """The release number of a version without trailing zeros: `4.2.0rc1` is (4, 2)."""
    found = re.match(r"[\d.]+", version)
    parts = [int(part) for part in found[0].split(".") if part] if found else []
    while parts and not parts[-1]:
        parts.pop()
    return tuple(parts)
