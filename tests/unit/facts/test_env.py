from pathlib import Path

import pytest

from ztunnel_trio.facts import env

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "env.md"


def test_no_variable_is_listed_twice() -> None:
    names = [variable.name for section in env.SECTIONS for variable in section.variables]

    assert len(names) == len(set(names))


def test_every_name_that_is_read_is_listed() -> None:
    for constant, name in vars(env).items():
        if constant.isupper() and isinstance(name, str) and constant != "HEAD":
            assert {name, f"{name}*"} & env.NAMES, constant


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == env.reference()


def test_the_command_prints_and_checks_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "env.md"

    assert env.main([]) == 0
    page.write_text(capsys.readouterr().out)

    assert env.main(["--check", str(page)]) == 0
    page.write_text("old")
    assert env.main(["--check", str(page)]) == 1
    assert "is out of date" in capsys.readouterr().err
