"""Which files of the build stage's Debian the interpreter needs: its own and the libraries they load."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

VERSION: Final = f"{sys.version_info.major}.{sys.version_info.minor}"
PROGRAM: Final = Path("/usr/bin") / f"python{VERSION}"
STANDARD_LIBRARY: Final = Path("/usr/lib") / f"python{VERSION}"
PACKAGES: Final = (f"python{VERSION}-minimal", f"libpython{VERSION}-minimal", f"libpython{VERSION}-stdlib")
# For people, for other interpreters, or with a library of their own that nothing here needs.
LEFT_OUT: Final = re.compile(
    r"(?:ensurepip|idlelib|pydoc_data|test|tkinter|turtledemo|venv|curses|dbm|sqlite3|lib2to3|__phello__"
    r"|lib-dynload/(?:_curses|_curses_panel|_dbm|_gdbm|_sqlite3|_test\w*|_xx\w*|_ctypes_test|readline|xx\w*)\..*"
    r"|_?pydoc\.py|turtle\.py|antigravity\.py|this\.py|config-.*|sitecustomize\.py|EXTERNALLY-MANAGED)(?:/|$)"
)
# Loaded by name at run time, so no file says that it is needed: glibc ends a thread with it.
LOADED_BY_NAME: Final = ("libgcc_s.so.1",)
CERTIFICATES: Final = Path("/etc/ssl/certs/ca-certificates.crt")
_MAGIC: Final = b"\x7fELF"
_NEEDED: Final = re.compile(r"^\s*(?:\S+ => )?(?P<path>/\S+) \(0x[0-9a-f]+\)$", re.MULTILINE)


def copy_interpreter(root: Path) -> None:
    """The program and the standard library, without what is for people and for other programs."""
    _copy(PROGRAM, root)
    for path in _files_of(PACKAGES):
        is_library = path.is_relative_to(STANDARD_LIBRARY) and path.is_file() and path.suffix != ".pyc"
        if is_library and LEFT_OUT.match(str(path.relative_to(STANDARD_LIBRARY))) is None:
            _copy(path, root)


def copy_libraries(root: Path) -> None:
    """Every shared library that a program or library below `root` loads, and the loader.

    Raises:
        CalledProcessError: one of them is not there.
    """
    needed = {found for path in binaries(root) for found in _needed(path)}
    wanted = {found for found in needed if not Path(found).is_relative_to(root)}  # a wheel brings some itself
    directory = next(Path(found).parent for found in wanted if "libc.so" in found)
    wanted |= {str(directory / name) for name in LOADED_BY_NAME}
    for found in wanted:
        _copy(Path(found), root)


def copied_packages(root: Path) -> dict[str, str]:
    """The Debian packages that files below `root` are from, with their versions."""
    packages: dict[str, str] = {}
    paths = [
        *binaries(root),
        root / str(STANDARD_LIBRARY / "os.py").lstrip("/"),
        root / str(CERTIFICATES)[1:],
    ]
    for path in paths:
        name = _owner(Path("/") / path.relative_to(root))
        if name:
            shown = _output("dpkg-query", "--show", "--showformat=${Package} ${Version}", name)
            package, _, version = shown.partition(" ")
            packages[package] = version
    return packages


def binaries(root: Path) -> list[Path]:
    """Every ELF file below `root`."""
    found = []
    for path in sorted(root.rglob("*")):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                if file.read(len(_MAGIC)) == _MAGIC:
                    found.append(path)
    return found


def _needed(path: Path) -> list[str]:
    """Absolute paths of what the loader would load for a file; empty for one that is linked to nothing."""
    shown = subprocess.run(["ldd", str(path)], capture_output=True, text=True, check=False)
    if "not found" in shown.stdout:
        raise FileNotFoundError(f"{path} needs a library that is not here:\n{shown.stdout}")
    return [found["path"] for found in _NEEDED.finditer(shown.stdout)]


def _owner(path: Path) -> str:
    """The package that a file is from, empty for a file of no package (a wheel's, or one that is made)."""
    for name in (path, Path("/usr") / path.relative_to("/"), path.with_suffix("")):
        done = subprocess.run(
            ["dpkg-query", "--search", str(name)], capture_output=True, text=True, check=False
        )
        for line in done.stdout.splitlines():
            if not line.startswith("diversion "):
                return line.partition(": ")[0]
    return "ca-certificates" if path == CERTIFICATES else ""


def _files_of(packages: Iterable[str]) -> list[Path]:
    return [Path(line) for line in _output("dpkg-query", "--listfiles", *packages).splitlines() if line]


def _copy(path: Path, root: Path) -> None:
    """A file to its own place below `root`, links followed."""
    target = root / str(path).lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
