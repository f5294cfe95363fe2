"""Make docs/pictures/demo.svg: `python -m tests.docs.demo_picture` runs the demo and draws what it tells.

Left out are the lines of progress, and calls that tell the same as another.
"""

import io
import sys
from collections.abc import Sequence
from typing import Final

import trio
from rich.console import Console
from rich.terminal_theme import MONOKAI

from tests.docs.blocks import ROOT
from ztunnel_trio.lab import demo
from ztunnel_trio.lab.evidence import Finding, Story
from ztunnel_trio.lab.report import Account, RichTeller

PICTURE: Final = ROOT / "docs" / "pictures" / "demo.svg"
SHOWN: Final = ("sleep → web-api", "foo/client → web-api", "outsider → web-api")
WIDTH: Final = 100
# rich's own frame without the fonts it would fetch from the network
FRAME: Final = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: monospace; font-size: {char_height}px; line-height: {line_height}px; }}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: sans-serif; }}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" /></clipPath>{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">{matrix}</g>
</g>
</svg>
"""


class Painter:
    """A teller that keeps what a picture has room for."""

    def __init__(self) -> None:
        self.console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
        self._rich = RichTeller(self.console)

    def progress(self, text: str) -> None:
        """Not shown."""

    def story(self, story: Story) -> None:
        if story.title in SHOWN:
            self._rich.story(story)

    def deletion(self, pod: str, findings: Sequence[Finding]) -> None:
        self._rich.deletion(pod, findings)

    def note(self, text: str) -> None:
        self._rich.note(text)

    def problem(self, text: str) -> None:
        self._rich.problem(text)

    def verdict(self, account: Account, seconds: float) -> None:
        self._rich.verdict(account, seconds)


def main() -> int:
    """Run the demo, draw it; 1 when it was not as promised, and no picture then."""
    painter = Painter()
    if not trio.run(demo.run, painter):
        return 1
    text = painter.console.export_svg(
        title="ztunnel-trio demo", theme=MONOKAI, code_format=FRAME, unique_id="demo"
    )
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text("\n".join(line.rstrip() for line in text.splitlines()) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
