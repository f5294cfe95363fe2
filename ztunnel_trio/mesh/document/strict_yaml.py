"""YAML with the scalars of its version 1.2, no key twice, and string matches as tags."""

import re
from typing import Final, cast

import yaml

from ztunnel_trio.errors import ConfigError


class Loader(yaml.SafeLoader):
    """PyYAML's own scalars are those of YAML 1.1."""

    def construct_mapping(
        self,
        node: yaml.MappingNode,
        deep: bool = False,
    ) -> dict[object, object]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key {key.value!r} twice", key.start_mark
                    )
                seen.add(key.value)
        return cast(dict[object, object], super().construct_mapping(node, deep))


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """The core schema (YAML 1.2.2, 10.3.2), by the characters a scalar may begin with."""
    found: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    for tag, pattern, first in (
        ("null", r"(?:~|null|Null|NULL|)", ["~", "n", "N", ""]),
        ("bool", r"(?:true|True|TRUE|false|False|FALSE)", list("tTfF")),
        ("int", r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)", list("-+0123456789")),
        ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", list("-+.0123456789")),
        ("merge", r"<<", ["<"]),
    ):
        for character in first:
            entry = (f"tag:yaml.org,2002:{tag}", re.compile(f"^{pattern}$"))
            found.setdefault(character, []).append(entry)
    return found


_TAGS: Final = ("Exact", "Prefix", "Suffix", "Presence")


def _construct_int(loader: Loader, node: yaml.ScalarNode) -> int:
    text = str(node.value)
    return int(text, 0) if text.startswith(("0o", "0x")) else int(text)


def _construct_float(loader: Loader, node: yaml.ScalarNode) -> float:
    return float(str(node.value))


def _construct_match(loader: Loader, suffix: str, node: yaml.Node) -> dict[str, object]:
    """`!Exact foo` is `{Exact: foo}`."""
    if suffix not in _TAGS:
        raise yaml.constructor.ConstructorError(None, None, f"unknown tag !{suffix}", node.start_mark)
    if isinstance(node, yaml.SequenceNode):
        return {suffix: loader.construct_sequence(node, deep=True)}
    if isinstance(node, yaml.ScalarNode):
        text = str(node.value)
        return {suffix: None if suffix == "Presence" and text in ("", "~", "null") else text}
    raise yaml.constructor.ConstructorError(None, None, f"!{suffix} of a mapping", node.start_mark)


Loader.yaml_implicit_resolvers = _resolvers()
Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)
Loader.add_multi_constructor("!", _construct_match)


def parse(text: str) -> object:
    """Read a document.

    Raises:
        ConfigError: it is none, or empty; with line and column where they are known.
    """
    try:
        document: object = yaml.load(text, Loader)  # noqa: S506 - a safe loader's subclass
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
        raise ConfigError(f"{where}{error.problem or error.context}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"not readable as YAML: {error}") from error
    if document is None:
        raise ConfigError("the document is empty; write {} for an empty mesh")
    return document
