"""Every command in the README and the pages is executed by a test, or marked with what it needs."""

import re
import subprocess

import pytest

from tests.docs.blocks import ROOT, Block, blocks, pages

EVERY = list(blocks())
TESTED = {  # mark: the test that runs these blocks
    "test: newcomer": "tests/netns/test_newcomer.py",
    "test: newcomer, demo --keep": "tests/netns/test_newcomer.py",
    "test: quick start": "tests/netns/test_quick_start.py",
    "test: promtool": "tests/docs/test_alerts.py",
    "test: release": "noxfile.py",
}
NEEDS = ("needs a cluster", "needs a container engine", "needs a package registry")
SESSIONS = set(re.findall(r"^@nox\.session.*\ndef (\w+)", (ROOT / "noxfile.py").read_text(), re.MULTILINE))


@pytest.mark.parametrize("block", EVERY, ids=lambda block: block.page)
def test_a_block_says_how_it_is_tested(block: Block) -> None:
    assert block.mark in (*TESTED, "nox", *NEEDS), block.text


@pytest.mark.parametrize("block", EVERY, ids=lambda block: block.page)
def test_the_shell_accepts_a_block(block: Block) -> None:
    checked = subprocess.run(["bash", "-n"], input=block.text, text=True, capture_output=True, check=False)

    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("block", [one for one in EVERY if one.mark == "nox"], ids=lambda block: block.page)
def test_a_session_that_is_named_exists(block: Block) -> None:
    named = re.findall(r"nox -s ((?:[\w]+ ?)+)", block.text)

    assert named or "nox" in block.text
    assert {name for names in named for name in names.split()} <= SESSIONS


@pytest.mark.parametrize(("mark", "test"), TESTED.items())
def test_the_test_of_a_mark_runs_its_blocks(mark: str, test: str) -> None:
    assert any(block.mark == mark for block in EVERY)
    assert mark.removeprefix("test: ") in (ROOT / test).read_text()


def test_the_newcomers_commands_are_the_same_on_each_page() -> None:
    assert len({block.text for block in EVERY if block.mark == "test: newcomer"}) == 1


def test_commands_stand_in_sh_blocks_only() -> None:
    for page in pages():
        assert not re.search(r"^```(?:bash|shell|console)$", page.read_text(), re.MULTILINE), page
