"""The `sh` blocks of the README and the pages, with the mark that says how each is tested.

The mark is an HTML comment on the line before the block:

| Mark | Meaning |
|---|---|
| `test: NAME` | a test runs the block's lines in order |
| `nox` | the sessions named in it exist; CI runs them |
| `needs a cluster` | not run; the shell has to accept its syntax |
| `needs ...` | as that: a container engine, a package registry, ... |
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Final

ROOT: Final = Path(__file__).parent.parent.parent
_BLOCK: Final = re.compile(r"(?:^ *<!-- ([^\n]*) -->\n)?^ *```sh\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_COMMENT: Final = re.compile(r"\s+# .*$")


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block: where it stands, its mark (empty when it has none) and its lines."""

    page: str
    mark: str
    text: str

    def commands(self) -> list[tuple[str, str]]:
        """Each command with the comment behind it; continued lines are joined."""
        found: list[tuple[str, str]] = []
        for line in self.text.replace("\\\n", " ").splitlines():
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            comment = _COMMENT.search(line)
            found.append((_COMMENT.sub("", line), comment[0].strip(" #") if comment else ""))
        return found


def pages() -> list[Path]:
    """Every page a reader may copy a command from."""
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def blocks() -> Iterator[Block]:
    """All `sh` blocks of all pages."""
    for page in pages():
        for mark, text in _BLOCK.findall(page.read_text()):
            yield Block(str(page.relative_to(ROOT)), mark, dedent(text))
