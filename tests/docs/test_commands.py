"""Every command in the README and the pages is executed by a test, or marked with what it needs."""

import re
import subprocess

import click
import pytest

from tests.docs.blocks import ROOT, Block, blocks, pages
from ztunnel_trio import cli

EVERY = list(blocks())
TESTED = {  # mark: the test that runs these blocks
    "test: newcomer": "tests/netns/test_newcomer.py",
    "test: newcomer, demo --keep": "tests/netns/test_newcomer.py",
    "test: quick start": "tests/netns/test_quick_start.py",
    "test: demo of SPIRE": "tests/netns/test_spire.py",
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


def inline(pattern: str) -> list[str]:
    """What the pages have in inline code and matches."""
    return sorted(
        {text for page in pages() for text in re.findall(f"`({pattern}[^`\n]*)`", page.read_text())}
    )


@pytest.mark.parametrize("command", inline(r"(?:\S*/)?nox -s "))
def test_a_session_named_in_a_sentence_exists(command: str) -> None:
    words = command.partition(" -s ")[2].partition(" -- ")[0].split()

    assert words
    assert set(words) <= SESSIONS | {"X"}


@pytest.mark.parametrize("command", inline(r"(?:\S*/)?ztunnel-trio "))
def test_a_command_named_in_a_sentence_exists(command: str) -> None:
    words = [word for word in command.split()[1:] if not word.startswith("-")]
    known: click.Command = cli.commands
    for word in words:
        if not isinstance(known, click.Group):
            break
        assert word in known.commands or word in ("proxy", "version", "help"), command
        known = known.commands.get(word, known)


def test_a_page_with_commands_for_a_cluster_says_so() -> None:
    for page in pages():
        text = page.read_text()
        if re.search(r"`(?:kubectl|helm|istioctl) \w+ [^`]+`", text):
            assert "needs a cluster" in text or "a cluster" in text, page


def test_commands_stand_in_sh_blocks_only() -> None:
    for page in pages():
        assert not re.search(r"^```(?:bash|shell|console)$", page.read_text(), re.MULTILINE), page
