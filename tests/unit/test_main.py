import os
import re
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from ztunnel_trio import __main__ as entry
from ztunnel_trio.config import Unstartable
from ztunnel_trio.errors import ConfigError

ROOT = Path(__file__).parents[2]


def run(arguments: Sequence[str], **environ: str) -> subprocess.CompletedProcess[str]:
    """The real program, in a directory where no file of a mesh lies."""
    base = {"PATH": os.defpath, "PYTHONPATH": str(ROOT), **environ}
    command = [sys.executable, "-W", "ignore", "-m", "ztunnel_trio", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=base, cwd="/", timeout=30, check=False)


def test_version_prints_the_build_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(["version"]) == 0
    assert re.fullmatch(
        r'version\.BuildInfo\{Version:".*", .*CryptoProvider:"tls-openssl"\}\n', capsys.readouterr().out
    )


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(["help"]) == 0

    page = capsys.readouterr().out
    assert "version.BuildInfo{" in page
    for command in ("proxy", "version", "help", *entry.COMMANDS):
        assert re.search(rf"^  {command} +\w", page, re.MULTILINE)


def test_an_unknown_command_is_named_and_help_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(["dance", "now"]) == 1

    page = capsys.readouterr()
    assert page.err == "unknown command: dance\n"
    assert "Commands:" in page.out


def test_a_bad_log_filter_ends_the_start_with_101() -> None:
    done = run(["proxy"], RUST_LOG="access=loud")

    assert done.returncode == 101
    assert done.stderr.startswith("Error: invalid env var RUST_LOG=access=loud (invalid level")


def test_a_bad_setting_ends_the_start_with_1() -> None:
    done = run(["proxy", "ztunnel"], ENABLE_PROXY="yes")

    assert done.returncode == 1
    assert done.stderr == (
        "Error: invalid env var ENABLE_PROXY=yes (provided string was not `true` or `false`)\n"
    )


def test_a_setting_that_cannot_be_honoured_ends_the_start_with_101() -> None:
    done = run([], COMPLIANCE_POLICY="pqc")

    assert done.returncode == 101
    assert "Error: invalid configuration: COMPLIANCE_POLICY=pqc" in done.stderr


def test_every_failure_of_a_group_is_told_with_its_cause(capsys: pytest.CaptureFixture[str]) -> None:
    cause = OSError(98, "Address already in use")
    failure = ConfigError("no port")
    failure.__cause__ = cause
    group = ExceptionGroup("a", [failure, ExceptionGroup("b", [Unstartable("no CA")])])

    assert entry.fail(entry.leaves(group)) == 101
    assert capsys.readouterr().err == (
        "Error: no port\nCaused by: Address already in use (os error 98)\nError: no CA\n"
    )
    assert entry.fail([failure]) == 1


def test_a_cause_that_adds_nothing_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    failure = ConfigError("mesh.yaml: No such file or directory (os error 2)")
    failure.__cause__ = OSError(2, "No such file or directory")

    entry.fail([failure])

    assert capsys.readouterr().err == "Error: mesh.yaml: No such file or directory (os error 2)\n"


def test_the_descriptor_limit_is_raised(caplog: pytest.LogCaptureFixture) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
        with caplog.at_level("INFO", "ztunnel"):
            entry.raise_descriptor_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == hard
        assert (
            caplog.records[-1].getMessage() == f"set file descriptor limits from {min(256, hard)} to {hard}"
        )
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_commands_people_type_are_not_loaded_for_the_proxy() -> None:
    code = "import sys; import ztunnel_trio.__main__ as e; e.main(['version']);"
    code += "sys.exit('click' in sys.modules or 'ztunnel_trio.lab' in sys.modules)"
    base = {"PATH": os.defpath, "PYTHONPATH": str(ROOT)}

    done = subprocess.run(
        [sys.executable, "-c", code], env=base, capture_output=True, timeout=30, check=False
    )

    assert done.returncode == 0


@pytest.mark.parametrize("arguments", [["proxy"], ["demo"]])
def test_a_library_that_cannot_be_used_ends_the_start_with_one_line(
    arguments: list[str], tmp_path: Path
) -> None:
    metadata = tmp_path / "grpclib-0.4.8.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: grpclib\nVersion: 0.4.8\n")

    done = run(arguments, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")

    assert done.returncode == 1
    assert done.stderr == "Error: grpclib 0.4.8 cannot be used, it must be ==0.4.9\n"


@pytest.mark.parametrize("arguments", [["proxy"], ["demo"]])
def test_a_second_event_loop_that_cannot_be_loaded_ends_the_start_with_one_line(
    arguments: list[str], tmp_path: Path
) -> None:
    tmp_path.joinpath("trio_asyncio.py").write_text("import asyncio; asyncio.policies_of_old\n")

    done = run(arguments, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")

    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: cannot load trio-asyncio ")
    assert "policies_of_old" in line
