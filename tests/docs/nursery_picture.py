"""Makes docs/pictures/nursery-tree.svg from the tree in docs/architecture.md: boxes in boxes.

`python -m tests.docs.nursery_picture` writes it; `--check` says whether it is as the page has it.
"""

import re
import sys
from dataclasses import dataclass, field
from html import escape
from typing import Final

from tests.docs.blocks import ROOT

PAGE: Final = ROOT / "docs" / "architecture.md"
PICTURE: Final = ROOT / "docs" / "pictures" / "nursery-tree.svg"
WIDTH, LINE, PAD = 900, 22, 10
COLOURS: Final = (
    "#f4f6fb",
    "#e4eaf6",
    "#d3def1",
    "#c2d2ec",
    "#b1c6e7",
    "#a0bae2",
    "#8faedd",
    "#7ea2d8",
    "#6d95d3",
)
_NODE: Final = re.compile(r"^([ │├└─]*)(.*?)(?: {3,}(.*))?$")


@dataclass(slots=True)
class Box:
    """A nursery or task: its name, what is said of it, and what it owns."""

    name: str
    text: str
    children: list["Box"] = field(default_factory=list)

    def height(self) -> int:
        return PAD + LINE + sum(child.height() + PAD for child in self.children)


def tree(page: str) -> Box:
    """The tree of the page, by its indentation of three columns a level."""
    block = page.split("## The nursery tree\n", 1)[1].split("```text\n", 1)[1].split("```", 1)[0]
    lines = block.rstrip("\n").split("\n")
    root = Box(lines[0], "")
    owners = {-1: root}
    for line in lines[1:]:
        found = _NODE.match(line)
        assert found is not None
        depth = len(found[1]) // 3 - 1
        box = Box(found[2].strip(), (found[3] or "").strip())
        owners[depth - 1].children.append(box)
        owners[depth] = box
    return root


def draw(box: Box, x: int, y: int, width: int, depth: int) -> list[str]:
    """A box at a place, and those in it below its line."""
    colour = COLOURS[depth % len(COLOURS)]
    parts = [
        f'<rect x="{x}" y="{y}" width="{width}" height="{box.height()}" rx="5" fill="{colour}"'
        ' stroke="#51658c"/>',
        f'<text x="{x + PAD}" y="{y + LINE - 5}"><tspan font-weight="bold">{escape(box.name)}</tspan>'
        f'<tspan dx="14">{escape(box.text)}</tspan></text>',
    ]
    below = y + LINE + PAD
    for child in box.children:
        parts += draw(child, x + PAD * 2, below, width - PAD * 3, depth + 1)
        below += child.height() + PAD
    return parts


def picture(page: str) -> str:
    """The SVG text."""
    root = tree(page)
    size = f"0 0 {WIDTH} {root.height() + 2}"
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{size}" font-family="sans-serif" font-size="12">'
    )
    return "\n".join([head, *draw(root, 1, 1, WIDTH - 2, 0), "</svg>", ""])


def main() -> int:
    """Write the picture, or compare it."""
    made = picture(PAGE.read_text())
    if "--check" in sys.argv:
        return int(made != PICTURE.read_text())
    PICTURE.write_text(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
