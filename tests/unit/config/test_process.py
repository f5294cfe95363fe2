import pytest

from tests.fakes.machine import loaded


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, 5),
        ({"TERMINATION_GRACE_PERIOD_SECONDS": "30"}, 25),
        ({"TERMINATION_GRACE_PERIOD_SECONDS": "11"}, 6),
        ({"TERMINATION_GRACE_PERIOD_SECONDS": "10"}, 9),
        ({"TERMINATION_GRACE_PERIOD_SECONDS": "2"}, 1),
        ({"TERMINATION_GRACE_PERIOD_SECONDS": "1"}, 1),
        ({"TERMINATION_GRACE_PERIOD_SECONDS": "0"}, 1),
        ({"TERMINATION_GRACE_PERIOD_SECONDS": "30", "CONNECTION_TERMINATION_DEADLINE": "1500ms"}, 1.5),
    ],
)
def test_the_drains_deadline(environ: dict[str, str], seconds: float) -> None:
    assert loaded(environ).self_termination_deadline_seconds == seconds


@pytest.mark.parametrize(
    ("environ", "threads"),
    [
        ({}, 2),
        ({"ZTUNNEL_RESOURCE_CPU_LIMIT": "500m"}, 1),
        ({"ZTUNNEL_RESOURCE_CPU_LIMIT": "2500m"}, 3),
        ({"ZTUNNEL_RESOURCE_CPU_LIMIT": "1.5"}, 2),
        ({"ZTUNNEL_CPU_LIMIT": "32"}, 8),
        ({"ZTUNNEL_RESOURCE_CPU_LIMIT": "4", "ZTUNNEL_RESOURCE_CPU_REQUEST": "8"}, 8),
        ({"ZTUNNEL_RESOURCE_CPU_REQUEST": "5"}, 5),
        ({"ZTUNNEL_CPU_LIMIT": "16", "ZTUNNEL_WORKER_THREADS": "30%"}, 5),
        ({"ZTUNNEL_CPU_LIMIT": "4", "ZTUNNEL_WORKER_THREADS": "10%"}, 1),
        ({"ZTUNNEL_CPU_LIMIT": "4", "ZTUNNEL_WORKER_THREADS": "0"}, 4),
        ({"ZTUNNEL_WORKER_THREADS": "7"}, 7),
        ({"PROXY_CONFIG": "concurrency: 3"}, 3),
        ({"PROXY_CONFIG": "concurrency: 0", "ZTUNNEL_CPU_LIMIT": "6"}, 6),
        ({"PROXY_CONFIG": "concurrency: 0", "ZTUNNEL_RESOURCE_CPU_LIMIT": "nonsense"}, 2),
    ],
)
def test_worker_threads_are_computed_for_show(environ: dict[str, str], threads: int) -> None:
    assert loaded(environ).num_worker_threads == threads


def test_other_policies_have_no_effect() -> None:
    assert loaded({"COMPLIANCE_POLICY": "fips-140-2"}) == loaded({})
