"""Values that several parts of the settings are made of."""

from collections.abc import Mapping, Sequence

from ztunnel_trio.errors import ConfigError

JsonValue = None | bool | int | float | str | Sequence["JsonValue"] | Mapping[str, "JsonValue"]


class Unstartable(ConfigError):
    """Settings with which the reference aborts instead of reporting: exit code 101, not 1."""


def first(chosen: int | None, default: int) -> int:
    return default if chosen is None else chosen
