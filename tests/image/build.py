"""Builds the image where no container engine runs: buildah does what the Dockerfile says, without containers.

The base is made here: debootstrap makes Debian's trixie from the archive that apt is set to on this machine.
How pip finds its index is handed in as the secrets that the Dockerfile names.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"

ROOT: Final = Path(__file__).parents[2]
TOOLS: Final = ("buildah", "debootstrap", "runc")
SUITE: Final = "trixie"
VERSION, REVISION = "9.8.7", "0123abc"
_BASE: Final = f"localhost/base:{SUITE}"
_IMAGE: Final = "localhost/ztunnel-trio:test"
_CERTIFICATES: Final = Path("/etc/ssl/certs/ca-certificates.crt")


@dataclass(frozen=True, slots=True)
class Image:
    """A built image: its files, below a directory, and its configuration."""

    files: Path
    config: dict[str, Json]

    def paths(self) -> dict[str, Path]:
        """Every file and link by its path in the image."""
        found = (path for path in self.files.rglob("*") if path.is_symlink() or not path.is_dir())
        return {f"/{path.relative_to(self.files)}": path for path in found}


def missing() -> str:
    """What is missing for building here, empty when nothing is."""
    if os.geteuid() != 0:
        return "building the image needs root"
    lacking = [tool for tool in TOOLS if shutil.which(tool) is None]
    if lacking:
        return f"building the image needs {', '.join(lacking)}"
    return "" if _archive() else "apt knows no Debian archive to make the image's base from"


@contextmanager
def built(work: Path) -> Iterator[Image]:
    """The image, for as long as its files are mounted. `work` keeps the base, which is made once.

    Raises:
        CalledProcessError: a step failed; its output is shown.
    """
    store = Buildah(work)
    if _BASE not in store.images():
        make_base(store, work)
    store.run(
        "build",
        *("--isolation", "chroot", "--pull-never", "--no-cache", "--timestamp", "0", "--tag", _IMAGE),
        *("--build-arg", f"BASE={_BASE}"),
        *("--build-arg", f"VERSION={VERSION}", "--build-arg", f"REVISION={REVISION}"),
        *("--secret", f"id=pip.conf,src={_pip_settings(work)}"),
        *("--secret", f"id=ca.crt,src={_CERTIFICATES}"),
        str(ROOT),
    )
    inspected = json.loads(store.run("inspect", "--type", "image", _IMAGE))
    container = store.run("from", "--pull-never", _IMAGE)
    try:
        yield Image(Path(store.run("mount", container)), inspected["OCIv1"]["config"])
    finally:
        store.run("umount", container)
        store.run("rm", container)
        store.let_go()


class Buildah:
    """buildah with a store of its own."""

    def __init__(self, work: Path) -> None:
        self._root = work / "store"
        self._options = ("--root", str(self._root), "--runroot", str(work / "run"))

    def run(self, *arguments: str) -> str:
        """Run one of its commands; what it printed."""
        command = ["buildah", *self._options, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(arguments)}:\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def let_go(self) -> None:
        """Take away the mount that a store's overlay driver leaves, so that its directory can be removed."""
        left = str(self._root / "overlay")
        mounted = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        if left in mounted:  # of the same file system, so no other sign tells
            subprocess.run(["umount", left], check=True)

    def images(self) -> list[str]:
        return self.run("images", "--format", "{{.Name}}:{{.Tag}}").splitlines()


def make_base(store: Buildah, work: Path) -> None:
    """Debian's smallest system, as an image. Certificates are this machine's: its archive may need them."""
    system = work / "base"
    options = ("--variant=minbase", "--include=ca-certificates")
    done = subprocess.run(
        ["debootstrap", *options, SUITE, str(system), _archive()], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    shutil.copyfile(_CERTIFICATES, system / str(_CERTIFICATES).lstrip("/"))
    for path in (system / "var" / "cache" / "apt" / "archives").glob("*.deb"):
        path.unlink()
    container = store.run("from", "scratch")
    store.run("copy", container, str(system), "/")
    store.run("commit", "--rm", container, _BASE)
    shutil.rmtree(system)


def _archive() -> str:
    """The Debian archive that apt is set to here, its main suites' first, empty if there is none."""
    if shutil.which("apt-get") is None:
        return ""
    command = ["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages", "Origin: Debian"]
    sites = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    return next((site for site in sites if site.rstrip("/").endswith("/debian")), "")


def _pip_settings(work: Path) -> Path:
    """How pip is set up here, as a file for the build stage, where certificates lie elsewhere."""
    command = ["python3", "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    kept = {"cert": "/run/secrets/ca.crt"}
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        option = name.rpartition(".")[2]
        if option in ("index-url", "extra-index-url", "trusted-host", "timeout"):
            kept[option] = value.strip("'")
    settings = work / "pip.conf"
    settings.write_text("\n".join(["[global]", *(f"{name} = {value}" for name, value in kept.items()), ""]))
    return settings
