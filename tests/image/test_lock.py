"""What is locked: all that the project asks for, with hashes, and to be had for both architectures."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.image.build import ROOT

LOCKS = ("requirements.lock", "build.lock")
PINNED = re.compile(
    r"^(?P<name>[\w.-]+)==(?P<version>\S+)(?P<hashes>(?: \\\n    --hash=sha256:[0-9a-f]{64})+)$"
)
ARCHITECTURES = ("x86_64", "aarch64")


def locked(name: str) -> dict[str, str]:
    """Versions by name; fails on a line that is anything but a name, a version and hashes."""
    entries = re.split(r"\n(?=\w)", (ROOT / "image" / name).read_text().strip())
    found = [PINNED.match(entry) for entry in entries]
    assert all(found), [entry for entry, match in zip(entries, found, strict=True) if match is None]
    return {match["name"]: match["version"] for match in found if match}


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_holds_names_versions_and_hashes_and_no_address(name: str) -> None:
    assert locked(name)
    assert "://" not in (ROOT / "image" / name).read_text()


@pytest.mark.parametrize("name", LOCKS)
def test_what_the_project_asks_for_is_locked_in_a_version_it_allows(name: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = {
        "requirements.lock": project["project"]["dependencies"],
        "build.lock": project["build-system"]["requires"],
    }[name]

    versions = locked(name)
    for line in asked:
        wanted = Requirement(line)
        assert wanted.specifier.contains(versions[wanted.name]), f"{line}: nox -s lock"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_wheel_is_there_for_the_architecture(architecture: str, tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(tmp_path), "--no-deps"]
    older = [f"manylinux_2_{minor}" for minor in range(17, 29)]  # a wheel for an older glibc will do
    platforms = [f"--platform={each}_{architecture}" for each in (*older, "manylinux2014")]
    options = ["--require-hashes", "--only-binary=:all:", "--python-version", "3.13", *platforms]
    requirements = ROOT / "image" / "requirements.lock"

    subprocess.run([*pip, *options, "--requirement", str(requirements)], check=True)

    assert len(list(tmp_path.glob("*.whl"))) == len(locked(requirements.name))
