"""What the tests of the gRPC room share."""

from pathlib import Path

import pytest

from tests.fakes.echo_server import ROOT


@pytest.fixture(scope="module")
def server_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server certificate for localhost, as files."""
    place = tmp_path_factory.mktemp("server")
    chain, key = ROOT.server("localhost", "127.0.0.1")
    (place / "chain.pem").write_text(chain)
    (place / "key.pem").write_bytes(key)
    return place
