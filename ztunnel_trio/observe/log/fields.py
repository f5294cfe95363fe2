"""Values of fields as text: plain and JSON, one line whatever the network sent."""

import json
import re
from collections.abc import Iterable
from typing import Final


class Bare(str):
    """A field value shown without quotes in plain lines: an address, an identity in display form."""

    __slots__ = ()


FieldValue = str | int | float | bool | None
Fields = Iterable[tuple[str, FieldValue]]
ESCAPES: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
UNSAFE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
QUOTABLE: Final = re.compile(r"[\"\\\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def escape(found: re.Match[str]) -> str:
    """One unsafe character as an escape sequence of plain text."""
    character = found[0]
    if character in '"\\':
        return "\\" + character
    return ESCAPES.get(character) or f"\\u{{{ord(character):x}}}"


def one_line(text: str) -> str:
    """The text without line ends, tabs or control characters: these become escape sequences."""
    return UNSAFE.sub(escape, text)


def plain_value(value: FieldValue) -> str:
    """A field's value in a plain line: text quoted, `Bare` text, numbers and booleans not."""
    if isinstance(value, str):
        if isinstance(value, Bare):
            return value if value.isprintable() else one_line(value)
        if value.isprintable() and '"' not in value and "\\" not in value:
            return f'"{value}"'
        return f'"{QUOTABLE.sub(escape, value)}"'
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


JSON: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def json_value(value: FieldValue) -> str:
    """A field's value in a JSON line; numbers and booleans stay what they are."""
    return JSON.encode(value)
