"""Every metric family, over prometheus-client, and their text form.

Theory of operation. Rare things are prometheus-client's counters and gauges (`registry`). Traffic is
not: its series are kept in `traffic`, where a connection adds to plain integers. `exposition` writes
all of it as OpenMetrics text.

What other rooms use is named here; the rest of each concept is in its own module.
"""

from ztunnel_trio.observe.metrics.labels import (
    DNS_LABELS,
    SOURCE_LABELS,
    SUCCESS,
    TRAFFIC_LABELS,
    UNKNOWN,
    Reporter,
)
from ztunnel_trio.observe.metrics.registry import Metrics
from ztunnel_trio.observe.metrics.sockets import Tally
from ztunnel_trio.observe.metrics.traffic import Series, Traffic

__all__ = [
    "DNS_LABELS",
    "SOURCE_LABELS",
    "SUCCESS",
    "TRAFFIC_LABELS",
    "UNKNOWN",
    "Metrics",
    "Reporter",
    "Series",
    "Tally",
    "Traffic",
]
