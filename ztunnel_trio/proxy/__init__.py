"""The data plane of one workload."""
