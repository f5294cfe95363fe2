"""Which events are wanted: the grammar of `RUST_LOG`, and what changes it at run time."""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

from ztunnel_trio.errors import ConfigError
from ztunnel_trio.observe.log.levels import LEVELS, NAMES, OFF, TRACE, parse_level

DEFAULT_FILTER: Final = "info"
# The reference silences its DNS library so, and operators' tools compare what it prints (src/telemetry.rs).
ALWAYS: Final = "hickory_server::server=off"


@dataclass(frozen=True, slots=True)
class Directive:
    """Up to which level events are wanted whose target starts with `target` and that have all `fields`.

    `target` None is the default level.
    """

    target: str | None
    fields: tuple[str, ...]
    level: int

    @property
    def rank(self) -> tuple[int, int, str, tuple[str, ...]]:
        """Sorts the more specific directive last."""
        target = self.target
        return (-1 if target is None else len(target), len(self.fields), target or "", self.fields)

    def __str__(self) -> str:
        fields = f"[{{{','.join(self.fields)}}}]" if self.fields else ""
        head = f"{self.target or ''}{fields}"
        return f"{head}={NAMES[self.level]}" if head or self.target is not None else NAMES[self.level]

    @classmethod
    def parse(cls, text: str) -> "Directive":
        """Read `LEVEL`, `TARGET`, `TARGET=LEVEL` or `TARGET[{f1,f2}]=LEVEL`.

        Raises:
            ConfigError: no such level, or brackets out of place.
        """
        head, equals, level_text = text.partition("=")
        if not equals:
            level = parse_level(head)
            return cls(None, (), level) if level is not None else cls(head, (), TRACE)
        if "=" in level_text:
            raise ConfigError("too many '=' in filter directive, expected 0 or 1")
        level = parse_level(level_text)
        if level is None:
            raise ConfigError(f"invalid level in filter directive: {level_text}")
        target, opened, names = head.partition("[{")
        if opened and ("[{" in names or not names.endswith("}]")):
            raise ConfigError("expected fields list to end with '}]'")
        return cls(target, tuple(name for name in names.removesuffix("}]").split(",") if name), level)


def parse_added(text: str) -> Directive:
    """One item of a change at run time.

    Raises:
        ConfigError: it is neither a lower-case level nor `target=level` nor `target:level`.
    """
    if "=" in text:
        return Directive.parse(text)
    if text in LEVELS:
        return Directive(None, (), LEVELS[text])
    scoped = re.fullmatch(r"(.*[^:]):([A-Za-z0-5]+)", text)
    level = None if scoped is None else parse_level(scoped[2])
    if scoped is None or level is None:
        raise ConfigError(f"no level: {text}")
    return Directive(scoped[1], (), level)


class Filter:
    """Which events are wanted (the grammar of `RUST_LOG`); immutable. The most specific directive decides."""

    __slots__ = ("directives",)

    def __init__(self, directives: Iterable[Directive]) -> None:
        """A later directive for the same target and fields replaces the earlier one."""
        unique = {(d.target, d.fields): d for d in directives}
        self.directives = tuple(sorted(unique.values(), key=lambda d: d.rank, reverse=True))

    @classmethod
    def parse(cls, text: str) -> "Filter":
        """Read comma-separated directives; commas between brackets separate field names.

        Raises:
            ConfigError: a directive is malformed.
        """
        return cls(Directive.parse(item) for item in re.split(r",(?![^\[\]]*\}\])", text))

    def __str__(self) -> str:
        return ",".join(map(str, self.directives))

    def with_levels(self, text: str) -> "Filter":
        """This filter with a comma list added: each item a lower-case level or `target=level`.

        `target:level` is accepted too, as istioctl sends it; the level follows the last single colon.

        Raises:
            ConfigError: an item is anything else.
        """
        try:
            return Filter((*self.directives, *map(parse_added, text.split(","))))
        except ConfigError:
            raise ConfigError(f"Invalid level provided: {text}") from None

    def reach(self, target: str) -> int:
        """The most verbose level an event of that target can have and still be wanted."""
        found = OFF
        for directive in self.directives:
            if directive.target is None or target.startswith(directive.target):
                found = min(found, directive.level)
                if not directive.fields:
                    break
        return found

    def wants(self, target: str, level: int, fields: Collection[str]) -> bool:
        """Whether the event is to be written."""
        for directive in self.directives:
            if (directive.target is None or target.startswith(directive.target)) and all(
                name in fields for name in directive.fields
            ):
                return level >= directive.level
        return False

    def lowest(self) -> int:
        """The most verbose level of any target."""
        return min((directive.level for directive in self.directives), default=OFF)
