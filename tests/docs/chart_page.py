"""docs/reference/chart.md: the values of the chart.

Names, order and defaults are those of values.yaml, what a value means is the comment above it, what it may be
is its entry in values.schema.json.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, TypeAlias

import yaml

from tests.docs.page import print_or_check

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"

CHART: Final = Path(__file__).parents[2] / "charts" / "ztunnel-trio"
INDENT: Final = 2
LINE: Final = re.compile(r"^(?P<indent> *)(?:# (?P<comment>.*)|(?P<key>[\w./-]+):.*)$")
SHAPES: Final = {  # what the schema's own names mean to a reader
    "texts": "map of text",
    "nullableTexts": "map of text",
    "scalars": "map of text, numbers or booleans",
    "quantities": "map of quantities",
    "objects": "list of objects",
    "namedObjects": "list of objects with a `name`",
}
HEAD: Final = """# Values of the chart

<!-- made by `nox -s docs` -->

They have the names and the meaning of the stock ztunnel chart's, so an existing values file works; different
are `hub`, `tag`, `image` and `variant`, for this is another image. A value at the top level wins over one
below `global`, that over `platform`, `compatibilityVersion` and `profile`, those over the default. A value of
a wrong type is refused with its path; one the chart does not know is named by the notes after installation.

| Value | Type | Default | Meaning |
|---|---|---|---|
"""
PRESETS: Final = """
## What a platform or a profile sets

| Name | Sets |
|---|---|
"""


def page() -> str:
    """The whole page."""
    rows = [f"| {name} | {kind} | {default} | {text} |\n" for name, kind, default, text in values()]
    presets = yaml.safe_load((CHART / "files" / "presets.yaml").read_text())
    named = [
        f"| {kind} `{name}` | {_settings(sets)} |\n"
        for kind in ("platform", "profile")
        for name, sets in presets[kind].items()
    ]
    return HEAD + "".join(rows) + PRESETS + "".join(named)


def values() -> Iterator[tuple[str, str, str, str]]:
    """Path, type, default and meaning of every value that has a comment."""
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())["_defaults"]
    schema = json.loads((CHART / "values.schema.json").read_text())
    path: list[str] = []
    comment: list[str] = []
    for line in (CHART / "values.yaml").read_text().partition("_defaults:\n")[2].splitlines():
        if (found := LINE.match(line)) is None:
            continue
        if found["comment"]:
            comment.append(found["comment"])
            continue
        path[len(found["indent"]) // INDENT - 1 :] = [found["key"]]
        if comment:
            text = " ".join(comment)
            comment = []
            yield f"`{'.'.join(path)}`", kind_of(schema, path), f"`{_shown(_at(defaults, path))}`", text


def kind_of(schema: Json, path: list[str]) -> str:
    """What the schema allows at a path, in words."""
    found = _at(schema, ["$defs", "values"])
    for key in path:
        found = _at(found, ["properties", key])
        if isinstance(found, dict) and isinstance(reference := found.get("$ref"), str):
            name = reference.rpartition("/")[2]
            if name in SHAPES:
                return SHAPES[name]
            found = _at(schema, ["$defs", name])
    assert isinstance(found, dict), path
    if isinstance(choices := found.get("enum"), list):
        return ", ".join(f"`{choice}`" for choice in choices if choice)
    kinds = found["type"]
    if kinds == "array":
        return f"list of {_at(found, ['items', 'type'])}"
    return " or ".join(str(kind) for kind in kinds) if isinstance(kinds, list) else str(kinds)


def leaves(tree: Json, above: tuple[str, ...] = ()) -> Iterator[tuple[str, Json]]:
    """Every value of nested maps, with its path."""
    if not isinstance(tree, dict):
        yield ".".join(above), tree
        return
    for key, value in tree.items():
        yield from leaves(value, (*above, key))


def _at(tree: Json, path: list[str]) -> Json:
    for key in path:
        assert isinstance(tree, dict), path
        tree = tree[key]
    return tree


def _settings(sets: Json) -> str:
    return ", ".join(f"`{path}: {_shown(value)}`" for path, value in leaves(sets)) or "nothing"


def _shown(value: Json) -> str:
    return json.dumps(value)


if __name__ == "__main__":
    sys.exit(print_or_check(page(), sys.argv[1:]))
