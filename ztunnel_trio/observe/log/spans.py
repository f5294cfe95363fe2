"""Spans: what the events of a stretch of work have in common."""

from contextvars import ContextVar
from typing import Self

from ztunnel_trio.observe.log.fields import FieldValue, plain_value


class span:  # noqa: N801  a context manager by its use
    """A named stretch of work: events within the body, and in tasks started there, carry it and its fields.

    None fields are left out. A class, since every connection keeps one: a generator would keep five times
    as much.
    """

    __slots__ = ("_given", "_token", "name")

    def __init__(self, name: str, /, **fields: FieldValue) -> None:
        self.name = name
        self._given = tuple(fields.items())

    def __enter__(self) -> Self:
        self._token = current_spans.set((*current_spans.get(), self))
        return self

    def __exit__(self, *_: object) -> None:
        current_spans.reset(self._token)

    @property
    def fields(self) -> list[tuple[str, FieldValue]]:
        """What it tells of itself."""
        return [(key, value) for key, value in self._given if value is not None]

    @property
    def plain(self) -> str:
        """Its part of a plain line's scope."""
        inner = " ".join(f"{key}={plain_value(value)}" for key, value in self.fields)
        return f":{self.name}{{{inner}}}" if inner else f":{self.name}"


current_spans: ContextVar[tuple[span, ...]] = ContextVar("current_spans", default=())
