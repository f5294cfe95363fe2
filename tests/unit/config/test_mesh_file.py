import pytest

from tests.fakes.machine import FakeMachine, loaded
from ztunnel_trio.config import load
from ztunnel_trio.config.mesh_file import MESH_FILE
from ztunnel_trio.errors import ConfigError

MESH = """
defaultConfig:
  discoveryAddress: istiod.istio-system-rev0.svc:15012
  proxyAdminPort: 15099
  statsPort: 15888
  unknownKey: [1]
  proxyMetadata:
    ISTIO_META_FOO: foo
trustDomain: ignored
"""
OVER = """
proxyAdminPort: 15999
proxyMetadata:
  ISTIO_META_FOO: over
  ISTIO_META_BAR: bar
  NO_PREFIX: kept
"""


def test_the_mesh_file_alone() -> None:
    config = loaded(files={MESH_FILE: MESH})

    assert (config.listeners.stats_addr.port, config.listeners.admin_addr.port) == (15888, 15099)
    assert config.told.proxy_metadata == {"FOO": "foo"}
    assert config.cluster_id == "Kubernetes"
    assert str(config.control.xds_address) == "https://istiod.istio-system-rev0.svc:15012"


def test_the_environment_goes_over_the_mesh_file() -> None:
    environ = {
        "PROXY_CONFIG": OVER,
        "ISTIO_META_INCLUDE_THIS": "this",
        "ISTIO_META_ISTIO_META_TWICE": "twice",
        "NOT_INCLUDE": "not",
        "ISTIO_META_CLUSTER_ID": "test-cluster",
        "CLUSTER_ID": "loses",
        "XDS_HEADER_HEADER_FOO": "foo",
        "CA_HEADER_HEADER_BAR": "bar",
    }

    config = loaded(environ, {MESH_FILE: MESH})

    assert (config.listeners.stats_addr.port, config.listeners.admin_addr.port) == (15888, 15999)
    assert config.listeners.readiness_addr.port == 15021
    assert config.told.proxy_metadata == {
        "FOO": "over",
        "BAR": "bar",
        "NO_PREFIX": "kept",
        "INCLUDE_THIS": "this",
        "TWICE": "twice",
        "CLUSTER_ID": "test-cluster",
    }
    assert config.cluster_id == "test-cluster"
    assert config.control.xds_headers == (("header_foo", "foo"),)
    assert config.control.ca_headers == (("header_bar", "bar"),)


@pytest.mark.parametrize("text", ["", "[]", "{", "defaultConfig: 7", "a: b: c", "2001-99-99"])
def test_a_mesh_file_that_makes_no_sense_ends_the_start(text: str) -> None:
    with pytest.raises(
        ConfigError, match=f"error parsing proxy config: failed parsing mesh config file {MESH_FILE}: "
    ):
        loaded(files={MESH_FILE: text})


def test_a_mesh_file_that_cannot_be_read_ends_the_start() -> None:
    with pytest.raises(ConfigError, match=r"mesh config file .*: Permission denied \(os error 13\)"):
        load({}, FakeMachine(failing=frozenset({MESH_FILE})))


def test_an_empty_default_config_is_fine() -> None:
    assert loaded({"PROXY_CONFIG": ""}, {MESH_FILE: "defaultConfig: null"}).listeners.stats_addr.port == 15020
