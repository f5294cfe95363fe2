import tomllib
from pathlib import Path

from ztunnel_trio.build_info import build_info

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


def test_the_build_line() -> None:
    build = build_info({"ISTIO_META_ISTIO_VERSION": "1.30.0"})

    assert str(build).startswith('version.BuildInfo{Version:"')
    assert 'IstioVersion:"1.30.0", CryptoProvider:"tls-openssl"}' in str(build)
    assert set(build.dump()) == {
        "version", "gitRevision", "rustVersion", "buildProfile", "buildStatus", "istioVersion",
        "cryptoProvider",
    }  # fmt: skip


def test_the_version_is_the_packages_from_a_checkout_too() -> None:
    assert build_info({}).version == tomllib.loads(PROJECT.read_text())["project"]["version"]
