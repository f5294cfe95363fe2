from ztunnel_trio.build_info import build_info


def test_the_build_line() -> None:
    build = build_info({"ISTIO_META_ISTIO_VERSION": "1.30.0"})

    assert str(build).startswith('version.BuildInfo{Version:"')
    assert 'IstioVersion:"1.30.0", CryptoProvider:"tls-openssl"}' in str(build)
    assert set(build.dump()) == {
        "version", "gitRevision", "rustVersion", "buildProfile", "buildStatus", "istioVersion",
        "cryptoProvider",
    }  # fmt: skip
