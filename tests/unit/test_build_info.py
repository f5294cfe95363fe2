import tomllib
from pathlib import Path

from ztunnel_trio import __version__
from ztunnel_trio.build_info import REVISION_FILE, build_info, git_revision

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


def test_the_build_line() -> None:
    build = build_info({"ISTIO_META_ISTIO_VERSION": "1.30.0"})

    assert str(build).startswith('version.BuildInfo{Version:"')
    assert 'IstioVersion:"1.30.0", CryptoProvider:"tls-openssl"}' in str(build)
    assert set(build.dump()) == {
        "version", "gitRevision", "rustVersion", "buildProfile", "buildStatus", "istioVersion",
        "cryptoProvider",
    }  # fmt: skip


def test_the_version_has_one_place() -> None:
    project = tomllib.loads(PROJECT.read_text())

    assert "version" in project["project"]["dynamic"]
    assert project["tool"]["hatch"]["version"]["path"] == "ztunnel_trio/__init__.py"
    assert build_info({}).version == __version__


def test_the_revision_is_what_the_build_wrote_beside_the_module(tmp_path: Path) -> None:
    path = tmp_path / REVISION_FILE
    assert git_revision(path) == ("unknown", "unknown")

    path.write_text("0123abcd Modified\n")

    assert git_revision(path) == ("0123abcd", "Modified")
