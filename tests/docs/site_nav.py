"""A hook of mkdocs: every page has its place in the navigation, also one that mkdocs.yml does not name."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol


class Settings(Protocol):
    """What is used of mkdocs' configuration."""

    docs_dir: str
    nav: list[object]


def on_config(config: Settings) -> Settings:
    """Append what the configuration does not name, then the decisions; titles come from the pages."""
    docs, listed = Path(config.docs_dir), set(named(config.nav))
    pages = [str(path.relative_to(docs)) for path in sorted(docs.rglob("*.md"))]
    decisions = [page for page in pages if page.startswith("decisions/")]
    others = [page for page in pages if page not in listed and page not in decisions]
    config.nav += others
    config.nav.append({"Decisions": decisions})
    return config


def named(nav: object) -> Iterator[str]:
    """The pages of a navigation, however deep."""
    match nav:
        case str():
            yield nav
        case dict():
            yield from named(list(nav.values()))
        case list():
            for one in nav:
                yield from named(one)
