import random

import pytest

from ztunnel_trio.model.backoff import Backoff

PATIENT = Backoff(first_seconds=1, limit_seconds=8)


@pytest.mark.parametrize(
    ("failures", "seconds"), [(0, 0), (1, 1), (2, 2), (3, 4), (4, 8), (5, 8), (10_000, 8)]
)
def test_the_wait_doubles_up_to_its_limit(failures: int, seconds: float) -> None:
    assert PATIENT.delay(failures, random.Random(0)) == seconds


def test_jitter_stays_within_its_share() -> None:
    backoff = Backoff(first_seconds=10, limit_seconds=100, jitter=0.2)
    rng = random.Random(1)

    delays = [backoff.delay(1, rng) for _ in range(200)]

    assert 8 <= min(delays) < 9 < 11 < max(delays) <= 12


def test_what_fails_for_long_waits_for_exactly_the_limit() -> None:
    backoff = Backoff(first_seconds=1, limit_seconds=150, jitter=0.2, growing_seconds=900)

    assert backoff.delay(2, random.Random(1), failing_seconds=901) == 150
    assert backoff.delay(2, random.Random(1), failing_seconds=900) < 3
