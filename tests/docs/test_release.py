"""The hosted run is `.ci/run` and nothing else, and that does what a release needs."""

import os
import re
import subprocess

import yaml

from tests.docs.blocks import ROOT
from ztunnel_trio import __version__

WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
RUN = (ROOT / ".ci" / "run").read_text()


def test_the_hosted_workflow_only_calls_the_script() -> None:
    [job] = WORKFLOW["jobs"].values()
    commands = [step["run"] for step in job["steps"] if "run" in step]

    assert commands[-1] == ".ci/run"
    assert all(re.match(r"apt-get update|git config", command) for command in commands[:-1])
    assert WORKFLOW["permissions"] == {"contents": "read"}


def test_the_script_is_executable_and_makes_what_is_released() -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert subprocess.run(["bash", "-n", ROOT / ".ci" / "run"], check=False).returncode == 0
    assert all(f"nox -s {session}" in RUN for session in ("tests", "docs", "audit", "release", "wheels"))


def test_the_changelog_has_this_version_or_what_will_be_it() -> None:
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)

    assert headings[0] == "Unreleased"
    assert headings[1:] == [] or headings[1].startswith(__version__)
