"""Variables by kind; every failure names the variable and its value."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from ztunnel_trio.errors import ConfigError
from ztunnel_trio.grammar import (
    parse_bool,
    parse_duration,
    parse_header,
    parse_unsigned,
)

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Environment:
    """Reads variables by kind; every failure names the variable and its value."""

    values: Mapping[str, str]

    def read(self, name: str, parse: Callable[[str], V], default: V) -> V:
        """The parsed value, or the default when unset.

        Raises:
            ConfigError: `invalid env var NAME=VALUE (REASON)`.
        """
        text = self.values.get(name)
        if text is None:
            return default
        try:
            return parse(text)
        except ConfigError as error:
            raise ConfigError(f"invalid env var {name}={text} ({error})") from None

    def text(self, name: str) -> str | None:
        return self.values.get(name)

    def boolean(self, name: str, *, default: bool) -> bool:
        return self.read(name, parse_bool, default)

    def seconds(self, name: str, default: float) -> float:
        return self.read(name, parse_duration, default)

    def number(self, name: str, default: int, *, bits: int = 32, least: int = 0, most: int = 2**64) -> int:
        def parse(text: str) -> int:
            number = parse_unsigned(text, bits)
            if not least <= number <= most:
                raise ConfigError(f"must be between {least} and {most}")
            return number

        return self.read(name, parse, default)

    def is_true(self, name: str) -> bool:
        """Whether it is exactly `true`; anything else is off, never an error."""
        return self.values.get(name) == "true"

    def headers(self, prefix: str) -> tuple[tuple[str, str], ...]:
        found = [
            parse_header(name, prefix, value)
            for name, value in self.values.items()
            if name.startswith(prefix)
        ]
        return tuple(sorted(found))


def is_utf8(text: str) -> bool:
    """Whether the operating system's bytes were UTF-8 (they decode to lone surrogates otherwise)."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
