"""Where the mesh comes from: the discovery client, a local document."""

from collections.abc import Callable
from pathlib import Path

from ztunnel_trio.assembly.control_plane import make_caller, make_target
from ztunnel_trio.config import Config
from ztunnel_trio.control.ads_client import AdsClient, AdsSettings
from ztunnel_trio.control.grpc import ChannelSettings
from ztunnel_trio.control.local_mesh import LocalSource
from ztunnel_trio.live_mesh import LiveMesh
from ztunnel_trio.observe.metrics import Metrics
from ztunnel_trio.supervise.keep_running import Supervisor
from ztunnel_trio.wire.ads import NodeFacts


def make_local_source(config: Config) -> LocalSource | None:
    """The document the mesh is also read from, if one is named."""
    if config.control.local_xds_path is not None:
        return LocalSource(path=Path(config.control.local_xds_path))
    return None if config.control.local_xds is None else LocalSource(text=config.control.local_xds)


def make_ads(
    config: Config,
    live: LiveMesh,
    metrics: Metrics,
    supervisor: Supervisor,
    on_ready: Callable[[], None],
    activity: Callable[[], int],
) -> AdsClient | None:
    """The discovery client, unless discovery is switched off. `activity` counts what the data path moves."""
    if config.control.xds_address is None:
        return None
    return AdsClient(
        live,
        make_target(config.control.xds_address, config.control.alt_xds_hostname),
        config.control.xds_root_cert,
        make_caller(config, config.control.xds_headers),
        NodeFacts(
            instance_ip=config.told.instance_ip,
            pod_name=config.told.pod_name,
            pod_namespace=config.told.pod_namespace,
            node_name=config.local_node or "",
            proxy_metadata=config.told.proxy_metadata,
            json_metadata=config.told.node_metadata_json,
        ),
        metrics=metrics,
        supervisor=supervisor,
        settings=AdsSettings(
            on_demand=config.control.xds_on_demand, channel=ChannelSettings(tls12=config.tls12_enabled)
        ),
        on_ready=on_ready,
        activity=activity,
    )
