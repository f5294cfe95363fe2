"""Certificate renewal: half-life, retention, and patience with a failing authority."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from random import Random

import pytest

from ztunnel_trio.decide.renew import FETCHING, Failures, GoWithout, Lifetime, Renew, Retain, next_step

NOW = datetime(2026, 5, 1, tzinfo=UTC)
CALM = replace(FETCHING, jitter=0.0)


def around(before: float, after: float) -> Lifetime:
    return Lifetime(NOW - timedelta(seconds=before), NOW + timedelta(seconds=after))


@pytest.mark.parametrize(
    ("lifetime", "seconds"),
    [
        (around(0, 1000), 500),
        (around(120, 86400), 43140),  # istiod: 24 h, backdated by 2 minutes
        (around(2000, -1000), 0),  # expired
        (around(-1000, 2000), 1500),  # not yet valid
        (around(-2000, -1000), 0),  # ends before it begins
        (around(800, 200), 0),  # past its half-life
    ],
)
def test_a_good_certificate_is_renewed_at_half_of_its_life(lifetime: Lifetime, seconds: float) -> None:
    assert next_step(lifetime, None, NOW, Random(1)) == Renew(seconds)


def test_failures_wait_1_2_4_up_to_150_seconds() -> None:
    waits = [next_step(None, Failures(count, 0), NOW, Random(1), CALM).seconds for count in range(1, 12)]

    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 150, 150, 150]
    assert CALM.delay(10_000, Random(1)) == 150


def test_each_wait_is_spread_by_a_fifth() -> None:
    rng = Random(1)
    waits = [FETCHING.delay(3, rng) for _ in range(300)]

    assert 3.2 <= min(waits) < 3.4
    assert 4.6 < max(waits) <= 4.8


def test_after_a_quarter_of_an_hour_the_wait_is_fixed() -> None:
    assert FETCHING.delay(2, Random(1), failing_seconds=901) == 150


def test_a_valid_certificate_is_kept_and_retried_before_it_ends() -> None:
    later = next_step(around(500, 500), Failures(3, 3), NOW, Random(1), CALM)
    end = next_step(around(500, 2), Failures(3, 3), NOW, Random(1), CALM)

    assert later == Retain(4, NOW + timedelta(seconds=500), NOW + timedelta(seconds=4))
    assert end == Retain(2, NOW + timedelta(seconds=2), NOW + timedelta(seconds=2))


def test_without_a_valid_certificate_there_is_nothing_to_serve() -> None:
    assert next_step(None, Failures(1, 0), NOW, Random(1), CALM) == GoWithout(1)
    assert next_step(around(1000, -1), Failures(1, 0), NOW, Random(1), CALM) == GoWithout(1)
