"""Scalars, tags and what is refused."""

import pytest

from ztunnel_trio.errors import ConfigError
from ztunnel_trio.mesh.document.strict_yaml import parse


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on", "on"),
        ("no", "no"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("'1'", "1"),
        ("1_0", "1_0"),
        ("0x10", 16),
        ("0o10", 8),
        ("010", 10),
        ("+3", 3),
        ("1.5", 1.5),
        (".5e1", 5.0),
        ("TRUE", True),
        ("[~, null, Null]", [None, None, None]),
    ],
)
def test_scalars_are_those_of_yaml_12(text: str, value: object) -> None:
    found = parse(text)

    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("!Exact x", {"Exact": "x"}),
        ("!Prefix 'x'", {"Prefix": "x"}),
        ("!Presence []", {"Presence": []}),
        ("!Presence", {"Presence": None}),
        ("!Presence ~", {"Presence": None}),
    ],
)
def test_a_string_match_may_be_a_tag(text: str, value: object) -> None:
    assert parse(text) == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the document is empty; write {} for an empty mesh"),
        ("a: [1", "line 1, column 6"),
        ("a: 1\na: 2", "line 2, column 1: key 'a' twice"),
        ("a: !Other x", "line 1, column 4: unknown tag !Other"),
        ("a: !Exact {x: y}", "line 1, column 4: !Exact of a mapping"),
        ("a: !!python/name:os.system", "line 1, column 4"),
        ("a: \x00", "not readable as YAML"),
    ],
)
def test_what_is_no_document_is_refused_with_its_place(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)

    assert words in str(caught.value)
