"""Put the image's files together: `python3 -m image.assemble ROOT [REVISION]`, on Debian, beside the sources.

Theory of operation. The last stage of the image is `ROOT` and nothing else, so everything that runs in it is
copied there by a rule: the interpreter's files as Debian's packages list them (`interpreter`), wheels from a
lock file with hashes, the project's own wheel, every shared library the loader would ask for, and a few files
that are written here. Byte code is made last and never checked against its source: files of an image may have
any modification time, and a start that finds its byte code stale compiles everything again (3 s).
"""

import compileall
import os
import py_compile
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import Final

from image import interpreter, sbom

SITE: Final = Path("usr/local/lib") / f"python{interpreter.VERSION}" / "dist-packages"
PROGRAM: Final = Path("usr/local/bin/ztunnel-trio")
GROUP: Final = 1337  # istio-proxy's, by which pods and agents know a proxy's sockets

WRITTEN: Final = {
    PROGRAM: (
        f"#!{interpreter.PROGRAM} -I\n"
        '"""The node proxy."""\n'
        "import sys\n"
        "from ztunnel_trio.__main__ import main\n"
        "sys.exit(main())\n"
    ),
    Path("etc/passwd"): "root:x:0:0:root:/:/sbin/nologin\n",
    Path("etc/group"): f"root:x:0:\nistio-proxy:x:{GROUP}:\n",
    Path("etc/nsswitch.conf"): "hosts: files dns\n",
}
DIRECTORIES: Final = ("dev", "proc", "sys", "tmp", "run", "var")
LINKS: Final = {"var/run": "/run"}


def main(root: Path, revision: str = "") -> None:
    """Fill an empty directory. `revision` is the commit of the sources, for `version`; empty: not known.

    Raises:
        CalledProcessError, OSError: a step failed.
    """
    if revision:
        Path("ztunnel_trio/revision.txt").write_text(f"{revision} Clean\n")  # as hatch_build.py has it
    work = root.with_name(f"{root.name}.work")  # the same in every build: pip notes where commands were made
    work.mkdir()
    install(root / SITE, work)
    shutil.rmtree(work)
    interpreter.copy_interpreter(root)
    interpreter.copy_libraries(root)
    write_files(root)
    sbom.write(root, root / SITE, interpreter.copied_packages(root))
    compile_all(root)
    set_modes(root)


def install(site: Path, work: Path) -> None:
    """What is locked, and the project, whose wheel is built with what is locked for that."""
    venv.create(work / "tools", with_pip=True)
    pip = [str(work / "tools" / "bin" / "pip"), "--disable-pip-version-check", "--quiet"]
    locked = ["--require-hashes", "--no-deps", "--only-binary=:all:", "--no-compile"]
    run(*pip, "install", *locked, "--requirement", "image/build.lock")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(work), ".")
    run(*pip, "install", *locked, "--target", str(site), "--requirement", "image/requirements.lock")
    shutil.rmtree(site / "bin")  # commands for people
    # By its name, not its path, which pip would note down.
    ours = ("--no-deps", "--no-compile", "--no-index", "--find-links", str(work), "ztunnel-trio")
    run(*pip, "install", "--target", str(site), *ours)
    shutil.rmtree(site / "bin")


def write_files(root: Path) -> None:
    """Names of users, the way of host names, root certificates, the command, places to mount."""
    for name, text in WRITTEN.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    certificates = root / str(interpreter.CERTIFICATES).lstrip("/")
    certificates.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(interpreter.CERTIFICATES, certificates)
    for place in DIRECTORIES:
        (root / place).mkdir(parents=True, exist_ok=True)
    (root / "tmp").chmod(0o1777)
    for link, target in LINKS.items():
        (root / link).symlink_to(target)


def compile_all(root: Path) -> None:
    """Byte code that is taken as it is; file names in it are those inside the image.

    Raises:
        OSError: a file cannot be compiled.
    """
    done = compileall.compile_dir(
        root,
        maxlevels=sys.getrecursionlimit(),
        stripdir=str(root),
        prependdir="/",
        quiet=1,
        workers=os.cpu_count() or 1,
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
    if not done:
        raise OSError("not everything could be compiled")


def set_modes(root: Path) -> None:
    """Two programs and their loader; everything else is only read."""
    programs = {root / PROGRAM, root / str(interpreter.PROGRAM).lstrip("/"), *root.glob("lib*/ld-linux*")}
    for path in root.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(0o755 if path in programs else 0o644)


def run(*command: str) -> None:
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
