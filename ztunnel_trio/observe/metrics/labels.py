"""The labels of metric families, in the order of ztunnel src/proxy/metrics.rs."""

from typing import Final, Literal

UNKNOWN: Final = "unknown"
Reporter = Literal["source", "destination"]
SOURCE_LABELS: Final = (
    "source_workload", "source_canonical_service", "source_canonical_revision", "source_workload_namespace",
    "source_principal", "source_app", "source_version", "source_cluster",
)  # fmt: skip
DESTINATION_LABELS: Final = (
    "destination_service", "destination_service_namespace", "destination_service_name",
    "destination_workload", "destination_canonical_service", "destination_canonical_revision",
    "destination_workload_namespace", "destination_principal", "destination_app", "destination_version",
    "destination_cluster",
)  # fmt: skip
LOCALITY_LABELS: Final = ("source_region", "source_zone", "destination_region", "destination_zone")
TRAFFIC_LABELS: Final = (
    "reporter", *SOURCE_LABELS, *DESTINATION_LABELS,
    "request_protocol", "response_flags", "connection_security_policy", *LOCALITY_LABELS,
)  # fmt: skip
FLAGS_AT: Final = TRAFFIC_LABELS.index("response_flags")
DNS_LABELS: Final = (
    "request_query_type", "request_protocol", "source_canonical_service", "source_canonical_revision"
)  # fmt: skip
SUCCESS: Final = "-"
