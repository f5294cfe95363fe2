"""The pages made from the code are as the code is now, and quote what the program really says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs import nursery_picture
from tests.docs.blocks import ROOT

REFERENCE = ROOT / "docs" / "reference"
MADE = {
    "commands.md": "tests.docs.commands_page",
    "endpoints.md": "tests.docs.endpoints_page",
    "licences.md": "tests.docs.licences_page",
    "env.md": "ztunnel_trio.facts.env",
    "metrics.md": "ztunnel_trio.observe.metrics",
}
SOURCE = "\n".join(
    path.read_text() for path in (ROOT / "ztunnel_trio").rglob("*.py") if "pb" not in path.parts
)
VARIABLE = re.compile(
    r"…|NAMESPACE/NAME|: http.*|: [A-Z].*|: |\b\d{3} [A-Z].*"
)  # where a quoted text is a detail's place


@pytest.mark.parametrize(("page", "module"), MADE.items())
def test_a_reference_page_is_as_it_would_be_made(page: str, module: str) -> None:
    command = [sys.executable, "-m", module, "--check", str(REFERENCE / page)]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert checked.returncode == 0, checked.stderr


def test_the_picture_of_the_nursery_tree_is_that_of_the_page() -> None:
    assert nursery_picture.PICTURE.read_text() == nursery_picture.picture(nursery_picture.PAGE.read_text())


def modules_named(text: str) -> list[str]:
    """The modules of the package that a page names with dots: `net.relay`, `wire.http2.frames`."""
    rooms = sorted(path.parent.name for path in (ROOT / "ztunnel_trio").glob("*/__init__.py"))
    return sorted(set(re.findall(rf"\b(?:{'|'.join(rooms)})(?:\.[a-z_0-9]+)+", text)))


@pytest.mark.parametrize("name", modules_named(nursery_picture.PAGE.read_text()))
def test_a_module_named_by_the_architecture_exists(name: str) -> None:
    place = ROOT.joinpath("ztunnel_trio", *name.split("."))
    is_module = place.with_suffix(".py").exists() or (place / "__init__.py").exists()

    assert is_module or place.parent.with_suffix(".py").exists()  # the latter: something in a module


def quoted(page: Path) -> list[str]:
    """The texts of the log that a page's tables quote: inline code with a blank in the first column."""
    cells = re.findall(r"^\| (`[^|]*`) \|", page.read_text(), re.MULTILINE)
    texts = [text for cell in cells for text in re.findall(r"`([^`]*)`", cell)]
    return [
        text for text in texts if " " in text and not text.startswith("invalid configuration: XDS_ADDRESS")
    ]


@pytest.mark.parametrize("text", quoted(ROOT / "docs" / "troubleshooting.md"))
def test_a_quoted_log_text_is_one_of_the_programs(text: str) -> None:
    pieces = [
        piece.strip(" :")
        for piece in VARIABLE.split(text.removeprefix("connection closed due to policy rejection: "))
    ]

    assert any(len(piece) > 5 for piece in pieces)
    assert all(piece in SOURCE for piece in pieces if piece), pieces
