"""Every metric family and their text form.

Theory of operation. `families` is the table of what there is. What only we write labels for is a number for
each label set (`plain`); what peers can write labels for is in bounded tables (`series`): connections in
`traffic`, names in `lookups`. `registry` holds them all, and `exposition` writes them as OpenMetrics text,
in pieces.

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
from ztunnel_trio.observe.metrics.series import SeriesLimits
from ztunnel_trio.observe.metrics.tally import Tally
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
    "SeriesLimits",
    "Tally",
    "Traffic",
]
