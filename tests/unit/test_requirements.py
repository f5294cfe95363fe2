"""Libraries of versions this was not built for."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from ztunnel_trio import requirements

PROJECT = tomllib.loads(Path(__file__).parents[2].joinpath("pyproject.toml").read_text())["project"]


@pytest.mark.parametrize(
    ("version", "bounds", "is_within"),
    [
        ("0.4.9", "==0.4.9", True),
        ("0.4.10", "==0.4.9", False),
        ("0.10.3", "==0.10.*", True),
        ("0.1", "==0.10.*", False),
        ("0.11.0", "==0.10.*", False),
        ("4.4", ">=4.4,<5", True),
        ("4.4.0rc1", ">=4.4,<5", True),
        ("4.10.1", "<5,>=4.4", True),
        ("4.3.9", ">=4.4,<5", False),
        ("5", ">=4.4,<5", False),
        ("5.0.0", ">=4.4,<5", False),
        ("7.36.2", "<8,>=7.35.1", True),
        ("7.35", "<8,>=7.35.1", False),
        ("1", "", True),
    ],
)
def test_bounds_are_kept_by_release_number(version: str, bounds: str, is_within: bool) -> None:
    assert requirements.is_within(version, bounds) is is_within


def test_each_library_that_is_wrong_is_named_with_its_version() -> None:
    wanted = ["grpclib==0.4.9", "click>=8.1", "h2<5,>=4.4", "hpack<5,>=4.2"]
    installed = {"grpclib": "0.4.8", "click": "1", "h2": "4.4.1"}

    def version_of(name: str) -> str:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    assert requirements.unmet(wanted, version_of) == [
        "grpclib 0.4.8 cannot be used, it must be ==0.4.9",
        "hpack is not installed",
    ]


def test_what_is_installed_here_is_as_asked_for() -> None:
    requirements.check()


def test_every_library_whose_insides_are_used_is_bounded_on_both_sides() -> None:
    bounds = {re.split("[<>=]", text)[0]: text for text in PROJECT["dependencies"]}

    for name in requirements.INSIDES:
        assert re.fullmatch(rf"{name}(==[\d.*]+|>=[\d.]+,<[\d.]+)", bounds[name])
