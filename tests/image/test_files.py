"""What is in the image, and what is not."""

import json
import re
import stat
import struct
from importlib.metadata import distributions
from pathlib import Path

import yaml
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from tests.image.build import REVISION, ROOT, VERSION, Image

PYTHON = r"/usr/lib/python3\.\d+"
WHEELS = r"/usr/local/lib/python3\.\d+/dist-packages"
ALLOWED = re.compile(
    rf"/usr/bin/python3\.\d+|{PYTHON}/.*|{WHEELS}/.*"  # interpreter, standard library, package, dependencies
    r"|(/usr)?/lib(64)?/([\w-]+/)?[\w.+-]+\.so[\w.]*"  # the libraries they load, and the loader
    r"|/usr/local/bin/ztunnel-trio"
    r"|/etc/(passwd|group|nsswitch\.conf|ssl/certs/ca-certificates\.crt)"
    r"|/usr/share/sbom/ztunnel-trio\.cdx\.json|/var/run"
)
ELF = b"\x7fELF"
UNCHECKED_HASH = 0b01  # PEP 552: by hash, and not to be checked


def test_there_is_nothing_but_interpreter_libraries_and_package(image: Image) -> None:
    assert [path for path in image.paths() if ALLOWED.fullmatch(path) is None] == []


def test_two_files_can_be_run_and_no_shell_or_pip_is_one(image: Image) -> None:
    programs = {
        name
        for name, path in image.paths().items()
        if path.is_file() and path.stat().st_mode & stat.S_IXUSR and ".so" not in name
    }

    assert len(programs) == 2
    assert "/usr/local/bin/ztunnel-trio" in programs
    assert any(re.fullmatch(r"/usr/bin/python3\.\d+", name) for name in programs)
    names = {Path(name).name for name in image.paths()}
    assert not names & {"sh", "bash", "dash", "busybox", "apt", "dpkg", "openssl", "gcc"}
    assert not [name for name in image.paths() if "/pip/" in name or "ensurepip" in name]


def test_no_file_gains_rights_or_can_be_written_by_others(image: Image) -> None:
    for name, path in image.paths().items():
        if not path.is_symlink():
            mode = path.stat().st_mode
            assert not mode & (stat.S_ISUID | stat.S_ISGID | stat.S_IWGRP | stat.S_IWOTH), name
            assert path.stat().st_uid == 0, name


def test_byte_code_is_there_and_never_found_stale(image: Image) -> None:
    sources = [path for path in image.paths().values() if path.suffix == ".py"]

    assert len(sources) > 1000
    for path in sources:
        (compiled,) = path.parent.glob(f"__pycache__/{path.stem}.cpython-*.pyc")
        (flags,) = struct.unpack("<I", compiled.read_bytes()[4:8])
        assert flags == UNCHECKED_HASH, path


def test_files_are_of_one_time(image: Image) -> None:
    assert {int(path.lstat().st_mtime) for path in image.paths().values()} == {0}


def test_the_lock_is_what_is_installed(image: Image) -> None:
    locked = re.findall(
        r"^([\w.-]+)==(\S+)", (ROOT / "image" / "requirements.lock").read_text(), re.MULTILINE
    )
    (site,) = image.files.glob("usr/local/lib/python3*/dist-packages")
    installed = {_plain(found.name): found.version for found in distributions(path=[str(site)])}

    installed.pop("ztunnel-trio")
    assert installed == {_plain(name): version for name, version in locked}


def test_the_bill_of_materials_is_valid_and_names_all_of_it(image: Image) -> None:
    text = (image.files / "usr/share/sbom/ztunnel-trio.cdx.json").read_text()

    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    parts = {part["name"] for part in json.loads(text)["components"]}
    locked = re.findall(r"^([\w.-]+)==", (ROOT / "image" / "requirements.lock").read_text(), re.MULTILINE)
    assert parts >= {_plain(name) for name in locked}
    assert {"libc6", "ca-certificates"} <= parts
    assert [name for name in parts if name.startswith("libssl3")]
    assert [name for name in parts if re.fullmatch(r"libpython3\.\d+-stdlib", name)]


def test_the_configuration_is_what_the_chart_relies_on(image: Image) -> None:
    chart = yaml.safe_load((ROOT / "charts" / "ztunnel-trio" / "Chart.yaml").read_text())
    labels = image.config["Labels"]

    assert image.config["Entrypoint"] == ["/usr/local/bin/ztunnel-trio"]
    assert "Cmd" not in image.config
    assert image.config["User"] == "0:1337"
    assert image.config["WorkingDir"] == "/"
    assert isinstance(labels, dict)
    labels = {name.removeprefix("org.opencontainers.image."): text for name, text in labels.items()}
    assert labels["title"] == chart["name"]
    assert labels["version"] == VERSION
    assert labels["revision"] == REVISION
    assert labels["licenses"] == "Apache-2.0"


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
