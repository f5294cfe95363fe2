"""A benchmark beside the image's proxies: `python -m tests.image.beside WORK datapath [OPTION...]`.

The second build's interpreter is a command that enters the image's files with chroot, and nothing of a
container besides: so the process that is measured is the proxy. WORK keeps the image's base; root is needed.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.image.build import built, missing

SHARED: Final = ("/proc", "/dev", "/sys", "/tmp")  # the lab's files are in the last


@contextmanager
def shared(root: Path) -> Iterator[None]:
    """The machine's own file systems inside the image's, until the end."""
    made: list[Path] = []
    try:
        for name in SHARED:
            place = root / name.lstrip("/")
            place.mkdir(exist_ok=True)
            subprocess.run(["mount", "--rbind", name, str(place)], check=True)
            made.append(place)
            subprocess.run(["mount", "--make-rslave", str(place)], check=True)
        yield
    finally:
        for place in reversed(made):
            subprocess.run(["umount", "--recursive", "--lazy", str(place)], check=True)


def main(work: Path, benchmark: str, *options: str) -> int:
    """Build, and run the benchmark; its exit code."""
    if why := missing():
        sys.exit(why)
    work.mkdir(parents=True, exist_ok=True)
    with built(work) as image, shared(image.files):
        (image.files / "etc" / "resolv.conf").write_text(Path("/etc/resolv.conf").read_text())
        (program,) = image.files.glob("usr/bin/python3*")
        commands = work / "bin"
        commands.mkdir(exist_ok=True)
        for name in ("python", "ztunnel-trio"):
            script = commands / name
            script.write_text(f'#!/bin/sh\nexec chroot {image.files} /usr/bin/{program.name} -I "$@"\n')
            script.chmod(0o755)
        beside = ("--beside", str(commands / "ztunnel-trio"))
        asked = [sys.executable, "-m", f"tests.benchmarks.{benchmark}", *beside, *options]
        return subprocess.run(asked, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
