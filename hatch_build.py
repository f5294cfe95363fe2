"""Puts the git revision into wheel and sdist, as `ztunnel_trio/revision.txt`.

The file holds `HASH Clean` or `HASH Modified`. A wheel made from an sdist keeps the sdist's. A checkout, and
an editable installation of one, have no such file.
"""

import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NAME = "ztunnel_trio/revision.txt"


class RevisionHook(BuildHookInterface):
    """Adds the file to what is built; it exists for the time of the build only."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        if version == "editable" or (root / NAME).exists() or not (text := revision(root)):
            return
        made = self._made()
        made.parent.mkdir(parents=True, exist_ok=True)
        made.write_text(text)
        build_data["force_include"][str(made)] = NAME

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        self._made().unlink(missing_ok=True)

    def _made(self) -> Path:
        return Path(self.directory) / f"revision-{self.target_name}.txt"


def revision(root: Path) -> str:
    """The commit of the repository whose top this is, and whether files differ; empty where there is none."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), "-c", f"safe.directory={root}", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != root.resolve():
            return ""  # an unpacked archive inside somebody else's repository
        is_changed = bool(git("status", "--porcelain", "--untracked-files=no"))
        return f"{git('rev-parse', 'HEAD')} {'Modified' if is_changed else 'Clean'}\n"
    except (OSError, subprocess.CalledProcessError):
        return ""
