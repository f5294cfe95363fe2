"""A hook of mkdocs: each decision has its place in the navigation, without a list to be kept by hand."""

from pathlib import Path
from typing import Protocol


class Settings(Protocol):
    """What is used of mkdocs' configuration."""

    docs_dir: str
    nav: list[dict[str, object]]


def on_config(config: Settings) -> Settings:
    """Append `docs/decisions/*.md`, by number; mkdocs takes the title from the page."""
    docs = Path(config.docs_dir)
    pages = [str(path.relative_to(docs)) for path in sorted((docs / "decisions").glob("*.md"))]
    config.nav.append({"Decisions": pages})
    return config
