"""The six levels, their numbers in `logging` and their names."""

import logging
from collections.abc import Mapping
from typing import Final

OFF: Final = 100
ERROR: Final = logging.ERROR
WARN: Final = logging.WARNING
INFO: Final = logging.INFO
DEBUG: Final = logging.DEBUG
TRACE: Final = 5
LEVELS: Final[Mapping[str, int]] = {
    "off": OFF, "error": ERROR, "warn": WARN, "info": INFO, "debug": DEBUG, "trace": TRACE
}  # fmt: skip
DIGITS: Final = tuple(LEVELS)
NAMES: Final = {level: name for name, level in LEVELS.items()}


def parse_level(text: str) -> int | None:
    """A level by name, in any case, or by digit 0 to 5; the empty text is `error`; None: no level."""
    if text.isascii() and text.isdigit() and len(text) == 1 and int(text) < len(DIGITS):
        return LEVELS[DIGITS[int(text)]]
    return ERROR if not text else LEVELS.get(text.lower())


def level_of(number: int) -> int:
    """One of our six levels for any level number of `logging`."""
    if number >= ERROR:
        return ERROR
    if number >= WARN:
        return WARN
    if number >= INFO:
        return INFO
    return DEBUG if number >= DEBUG else TRACE
