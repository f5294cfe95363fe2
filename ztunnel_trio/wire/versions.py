"""Which resources of one type we have, in which version: as many as one request may name."""

from collections.abc import Iterator
from typing import Final

NAMES_AT_ONCE: Final = 256
_LITTLE_ROOM: Final = 128  # bytes of a request that are not worth measuring every entry for


class ResourceVersions:
    """What we have of one type: the versions of as many resources as one request may name, of the others
    the names alone.

    The control plane takes requests of 4 MiB (`wire.ads.REQUEST_LIMIT_BYTES`); what a request does not name
    comes again, or is gone without a word. An unnamed resource carries the number of the last stream that
    brought it, which tells the two apart.
    """

    __slots__ = ("_named", "_room", "_stream", "_unnamed")

    def __init__(self, room_bytes: int) -> None:
        self._room = room_bytes
        self._stream = 0
        self._named: dict[str, str] = {}
        self._unnamed: dict[str, int] = {}

    def as_dict(self) -> dict[str, str | None]:
        """All of it; None for the version of an unnamed one."""
        return {**self._named, **dict.fromkeys(self._unnamed)}

    def __len__(self) -> int:
        return len(self._named) + len(self._unnamed)

    def __contains__(self, name: str) -> bool:
        return name in self._named or name in self._unnamed

    def begin_stream(self) -> None:
        """From now on what comes is of another stream."""
        self._stream += 1

    def put(self, name: str, version: str) -> None:
        """We have that version now."""
        before = self._named.get(name)
        if before is not None:
            if len(before) != len(version):
                self._room += entry_bytes(name, before) - entry_bytes(name, version)
            self._named[name] = version
            if self._room < 0:
                self._room += entry_bytes(name, version)
                del self._named[name]
                self._unnamed[name] = self._stream
            return
        if self._room > _LITTLE_ROOM and (size := entry_bytes(name, version)) <= self._room:
            if self._unnamed:
                self._unnamed.pop(name, None)
            self._named[name] = version
            self._room -= size
        else:
            self._unnamed[name] = self._stream

    def come_again(self, name: str) -> None:
        """It came, but we keep what we had."""
        if name in self._unnamed:
            self._unnamed[name] = self._stream

    def drop(self, name: str) -> None:
        """We have it no more."""
        version = self._named.pop(name, None)
        if version is None:
            self._unnamed.pop(name, None)
        else:
            self._room += entry_bytes(name, version)

    def versions(self) -> Iterator[dict[str, str]]:
        """What a request names, some at a time; changes meanwhile may or may not be seen."""
        for names in some_at_a_time(list(self._named)):
            yield {name: version for name in names if (version := self._named.get(name)) is not None}

    def unnamed(self) -> Iterator[list[str]]:
        """The names a request has no room for, some at a time."""
        yield from some_at_a_time(list(self._unnamed))

    def vanished(self) -> Iterator[list[str]]:
        """The unnamed that this stream has not brought, some at a time."""
        for names in some_at_a_time(list(self._unnamed)):
            yield [name for name in names if self._unnamed.get(name, self._stream) != self._stream]


def some_at_a_time(names: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(names), NAMES_AT_ONCE):
        yield names[start : start + NAMES_AT_ONCE]


def entry_bytes(name: str, version: str) -> int:
    """An upper bound for one map entry on the wire: two strings and three tags with their lengths."""
    if name.isascii() and version.isascii() and (size := len(name) + len(version)) < 120:
        return size + 6
    size = (len(name) if name.isascii() else len(name.encode())) + (
        len(version) if version.isascii() else len(version.encode())
    )
    return size + (6 if size < 120 else 18)  # protobuf: a length below 128 takes one byte
