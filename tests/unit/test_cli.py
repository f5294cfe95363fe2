"""The commands people type, as far as they go without a mesh."""

import signal
import tempfile
from pathlib import Path

import pytest
import trio

from tests.fakes.trio_test import trio_test
from ztunnel_trio import cli


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    said = capsys.readouterr().out
    assert "demo" in said
    assert "lab" in said


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["demo", "--nonsense"], ["lab", "exec", "x"], ["lab", "call"]]
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    assert "Usage" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["list"], ["exec", "web-api", "true"], ["call", "web-api", "10.0.0.1:80"]]
)
def test_without_a_mesh_the_way_to_one_is_told(
    arguments: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    assert cli.main(["lab", *arguments]) == 1
    assert "demo --keep" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_cancels_the_work_and_is_named(number: signal.Signals) -> None:
    cancelled: list[bool] = []

    async def work() -> None:
        signal.raise_signal(number)
        try:
            await trio.sleep_forever()
        finally:
            cancelled.append(True)

    with pytest.RaisesGroup(pytest.RaisesExc(cli.Interrupted, match=number.name)):
        trio.run(cli.until_signal, work)
    assert cancelled == [True]


@trio_test
async def test_work_that_ends_gives_its_result() -> None:
    async def work() -> str:
        await trio.lowlevel.checkpoint()
        return "done"

    assert await cli.until_signal(work) == "done"


def test_the_single_errors_of_nested_groups_are_found() -> None:
    one, other = ValueError("one"), KeyError("other")

    assert cli.leaves(ExceptionGroup("", [one, ExceptionGroup("", [other])])) == [one, other]
