"""The keeper on a fake clock, against an authority that is slow, fails and recovers on request."""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from random import Random

import pytest
import trio
import trio.testing

from tests.fakes.cancellation import cancelled_everywhere_now
from tests.fakes.trio_test import trio_test
from ztunnel_trio.certs.entries import CertificateState
from ztunnel_trio.certs.keeper import (
    FORGOTTEN,
    Keeper,
    KeeperSettings,
)
from ztunnel_trio.certs.provider import Pending, Withdrawn
from ztunnel_trio.decide.renew import FETCHING
from ztunnel_trio.errors import Unavailable
from ztunnel_trio.model.certificate import WorkloadCertificate
from ztunnel_trio.model.certificate_key import AttestedPod, CertificateKey
from ztunnel_trio.model.identity import SpiffeId
from ztunnel_trio.model.workload import WorkloadInfo
from ztunnel_trio.supervise.wall_clock import WallClock

START = datetime(2026, 5, 1, tzinfo=UTC)
IDS = [CertificateKey(SpiffeId("td", "ns", f"id{number}")) for number in range(1, 101)]


def now() -> datetime:
    return START + timedelta(seconds=trio.current_time())


@dataclass(eq=False)
class FakeAuthority:
    """Signs after `latency` seconds, unless `error` is set; `pushes` wakes `changed`."""

    latency: float = 0.0
    lifetime: float = 86400.0
    error: str | None = None
    attests_pods: bool = False
    calls: list[CertificateKey] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    closed: list[CertificateKey] = field(default_factory=list)
    hurried: list[CertificateKey] = field(default_factory=list)
    failure: Unavailable | None = None
    pushes: trio.Event = field(default_factory=trio.Event)
    now: Callable[[], datetime] = now

    async def fetch(self, key: CertificateKey) -> WorkloadCertificate:
        self.calls.append(key)
        self.times.append(trio.current_time())
        await trio.sleep(self.latency)
        if self.error is not None:
            raise Unavailable(self.error)
        if self.failure is not None:
            raise self.failure
        return WorkloadCertificate(
            identity=key.identity,
            leaf_der=b"",
            intermediates_der=(),
            roots_der=(),
            key_pem=b"",
            not_before=self.now(),
            not_after=self.now() + timedelta(seconds=self.lifetime),
            serial=len(self.calls),
        )

    async def changed(self, key: CertificateKey) -> None:
        await self.pushes.wait()
        self.pushes = trio.Event()

    def close(self, key: CertificateKey) -> None:
        self.closed.append(key)

    def hurry(self, key: CertificateKey) -> None:
        self.hurried.append(key)


def keeping(
    authority: FakeAuthority, body: Callable[[Keeper], Awaitable[None]], *, fetches_at_once: int = 8
) -> Callable[[], Awaitable[None]]:
    """Run `body` with a keeper that runs, then stop it."""

    async def main() -> None:
        settings = KeeperSettings(
            fetches_at_once=fetches_at_once, least_renewal_seconds=0.01, backoff=replace(FETCHING, jitter=0)
        )
        keeper = Keeper(authority, clock=WallClock(now), rng=Random(1), settings=settings)
        async with trio.open_nursery() as nursery:
            await nursery.start(keeper.run)
            await body(keeper)
            nursery.cancel_scope.cancel()

    return main


def run(
    authority: FakeAuthority, body: Callable[[Keeper], Awaitable[None]], *, fetches_at_once: int = 8
) -> None:
    clock = trio.testing.MockClock(autojump_threshold=0)
    trio.run(keeping(authority, body, fetches_at_once=fetches_at_once), clock=clock)


async def ask(keeper: Keeper, key: CertificateKey, results: list[WorkloadCertificate | str]) -> None:
    try:
        results.append(await keeper.certificate(key))
    except Unavailable as error:
        results.append(str(error))


def test_many_tasks_asking_for_many_identities_share_a_hundred_fetches() -> None:
    authority = FakeAuthority(latency=0.001, lifetime=3600)
    results: list[WorkloadCertificate | str] = []

    async def body(keeper: Keeper) -> None:
        async def all_of_them() -> None:
            for identity in IDS:
                await ask(keeper, identity, results)

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(all_of_them)
        assert len(keeper) == 100

    run(authority, body, fetches_at_once=2)

    assert len(authority.calls) == 100
    assert len(results) == 800
    assert not any(isinstance(one, str) for one in results)


def test_short_certificates_are_renewed_and_no_read_fails() -> None:
    authority = FakeAuthority(lifetime=0.05)

    async def body(keeper: Keeper) -> None:
        first = await keeper.certificate(IDS[0])
        for _ in range(20):
            await trio.sleep(0.01)
            await keeper.certificate(IDS[0])
        later = await keeper.certificate(IDS[0])
        assert later.serial > first.serial
        assert later.not_before > first.not_before

    run(authority, body)


def test_two_hundred_identities_of_ten_seconds_are_never_without_a_valid_certificate() -> None:
    """For a minute, over a CA that takes 50 ms and fails for three seconds in the middle."""
    authority = FakeAuthority(latency=0.05, lifetime=10)
    identities = [CertificateKey(SpiffeId("td", "ns", f"id{number}")) for number in range(200)]

    async def body(keeper: Keeper) -> None:
        for identity in identities:
            keeper.prefetch(identity)
        await trio.sleep(2)
        for second in range(60):
            authority.error = "the CA is down" if 28 <= second < 31 else None
            for identity in identities:
                certificate = await keeper.certificate(identity)
                assert certificate.not_before <= now() < certificate.not_after
            await trio.sleep(1)

    run(authority, body)

    assert 200 * 10 <= len(authority.calls) <= 200 * 20  # each five seconds, and what was tried in vain


def test_who_waits_is_served_by_urgency_and_renewals_keep_that_order() -> None:
    authority = FakeAuthority(latency=3, lifetime=100)

    async def body(keeper: Keeper) -> None:
        await keeper.certificate(IDS[0])
        await trio.sleep_until(49)
        keeper.prefetch(IDS[4])
        await trio.sleep_until(51)
        assert authority.calls == [IDS[0], IDS[4]]  # the renewal of the first waits
        keeper.prefetch(IDS[2])
        await trio.testing.wait_all_tasks_blocked()
        await keeper.certificate(IDS[3])
        await trio.sleep_until(70)
        assert authority.calls == [IDS[0], IDS[4], IDS[3], IDS[2], IDS[0]]
        await trio.sleep_until(115)
        assert authority.calls[5:] == [IDS[4], IDS[3], IDS[2], IDS[0]]

    run(authority, body, fetches_at_once=1)


def test_a_connection_overtakes_workloads_that_warm_up() -> None:
    authority = FakeAuthority(latency=1)

    async def body(keeper: Keeper) -> None:
        for identity in IDS[:4]:
            keeper.prefetch(identity)
        await trio.testing.wait_all_tasks_blocked()
        await keeper.certificate(IDS[9])
        assert authority.calls[:2] == [IDS[0], IDS[9]]

    run(authority, body, fetches_at_once=1)


def test_a_connection_raises_the_urgency_of_what_is_waiting() -> None:
    authority = FakeAuthority(latency=1)

    async def body(keeper: Keeper) -> None:
        for identity in IDS[:4]:
            keeper.prefetch(identity)
        await trio.testing.wait_all_tasks_blocked()
        await keeper.certificate(IDS[3])
        assert authority.calls[:2] == [IDS[0], IDS[3]]
        for identity in IDS[:4]:
            await keeper.certificate(identity)
        assert len(authority.calls) == 4

    run(authority, body, fetches_at_once=1)


def test_many_requests_for_one_identity_share_one_object() -> None:
    authority = FakeAuthority(latency=1)
    results: list[WorkloadCertificate | str] = []

    async def body(keeper: Keeper) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(ask, keeper, IDS[0], results)

    run(authority, body)

    assert len(authority.calls) == 1
    assert len({id(one) for one in results}) == 1


def test_fetches_run_side_by_side_up_to_the_limit() -> None:
    authority = FakeAuthority(latency=1)

    async def body(keeper: Keeper) -> None:
        async with trio.open_nursery() as nursery:
            for identity in IDS[:4]:
                nursery.start_soon(keeper.certificate, identity)
        assert trio.current_time() == 1

    run(authority, body, fetches_at_once=4)


def test_forgetting_fails_who_waits_and_discards_the_result() -> None:
    authority = FakeAuthority(latency=1)
    results: list[WorkloadCertificate | str] = []

    async def body(keeper: Keeper) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, keeper, IDS[0], results)
            await trio.sleep(0.5)
            keeper.forget(IDS[0])
        assert trio.current_time() == 0.5
        assert len(keeper) == 0
        await trio.sleep(2)
        assert len(keeper) == 0

    run(authority, body)

    assert results == [FORGOTTEN]
    assert authority.closed == [IDS[0]]


def test_a_request_after_forgetting_takes_over_the_fetch_under_way() -> None:
    authority = FakeAuthority(latency=1)

    async def body(keeper: Keeper) -> None:
        keeper.prefetch(IDS[0])
        await trio.sleep(0.5)
        keeper.forget(IDS[0])
        keeper.forget(IDS[0])
        assert (await keeper.certificate(IDS[0])).serial == 1
        assert trio.current_time() == 1

    run(authority, body)

    assert len(authority.calls) == 1


def test_a_forgotten_identity_is_renewed_no_more_and_can_come_back() -> None:
    authority = FakeAuthority(lifetime=10)

    async def body(keeper: Keeper) -> None:
        await keeper.certificate(IDS[0])
        assert len(keeper) == 1
        keeper.forget(IDS[0])
        assert len(keeper) == 0
        await trio.sleep(100)
        assert len(authority.calls) == 1
        assert (await keeper.certificate(IDS[0])).serial == 2

    run(authority, body)


def test_an_identity_forgotten_while_it_waits_for_its_turn_is_never_fetched() -> None:
    authority = FakeAuthority(latency=1)

    async def body(keeper: Keeper) -> None:
        for identity in IDS[:3]:
            keeper.prefetch(identity)
        await trio.testing.wait_all_tasks_blocked()
        keeper.forget(IDS[1])
        await trio.sleep(5)

    run(authority, body, fetches_at_once=1)

    assert authority.calls == [IDS[0], IDS[2]]


def test_after_a_failure_requests_fail_at_once_until_the_retry() -> None:
    authority = FakeAuthority(error="signing gRPC error (Unknown error): no")

    async def body(keeper: Keeper) -> None:
        for _ in range(2):
            with pytest.raises(Unavailable, match="no"):
                await keeper.certificate(IDS[0])
        assert len(authority.calls) == 1
        authority.error = None
        with pytest.raises(Unavailable, match="no"):
            await keeper.certificate(IDS[0])
        await trio.sleep(3)
        assert (await keeper.certificate(IDS[0])).serial == 2

    run(authority, body)


def test_an_identitys_retries_come_after_1_2_4_seconds_and_delay_nobody_else() -> None:
    authority = FakeAuthority(error="no")

    async def body(keeper: Keeper) -> None:
        keeper.prefetch(IDS[0])
        await trio.sleep(16)
        authority.error = None
        await keeper.certificate(IDS[1])
        assert trio.current_time() == 16

    run(authority, body)

    assert authority.times == [0, 1, 3, 7, 15, 16]


def test_a_valid_certificate_outlives_failing_renewals_until_its_end() -> None:
    authority = FakeAuthority(lifetime=100)

    async def body(keeper: Keeper) -> None:
        first = await keeper.certificate(IDS[0])
        authority.error = "no"
        await trio.sleep(70)
        assert len(authority.calls) > 2
        assert (await keeper.certificate(IDS[0])) is first
        await trio.sleep(100)
        with pytest.raises(Unavailable, match="no"):
            await keeper.certificate(IDS[0])
        assert keeper.dump() == [CertificateState(IDS[0], "Unavailable: no", None)]

    run(authority, body)


def test_what_is_retained_and_what_is_missing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    authority = FakeAuthority(lifetime=100)

    async def body(keeper: Keeper) -> None:
        await keeper.certificate(IDS[0])
        authority.error = "no"
        await trio.sleep(51)
        keeper.prefetch(IDS[1])
        await trio.sleep(0.5)

    with caplog.at_level(logging.INFO, "ztunnel::identity::manager"):
        run(authority, body)

    texts = [record.getMessage() for record in caplog.records]
    assert (
        texts[0] == "certificate renewal failed (no); retaining existing valid certificate until "
        "2026-05-01 00:01:40+00:00; next retry at 2026-05-01 00:00:51+00:00"
    )
    assert 'unable to prefetch cert for "spiffe://td/ns/ns/sa/id2", skipping, no' in texts
    assert (
        "certificate fetch failed (no) and no valid existing certificate; will retry in 1.000s "
        "(backoff capped at 150s)" in texts
    )


def test_a_cancelled_waiter_does_not_cancel_the_fetch() -> None:
    authority = FakeAuthority(latency=1)

    async def body(keeper: Keeper) -> None:
        with trio.move_on_after(0.5):
            await keeper.certificate(IDS[0])
        assert keeper.current(IDS[0]) is None
        assert keeper.dump() == [CertificateState(IDS[0], "Initializing", None)]
        await keeper.certificate(IDS[0])
        assert trio.current_time() == 1
        assert keeper.dump()[0].state == "Available"

    run(authority, body)

    assert len(authority.calls) == 1


def test_a_pushed_certificate_replaces_the_one_before_at_once() -> None:
    authority = FakeAuthority()

    async def body(keeper: Keeper) -> None:
        await keeper.certificate(IDS[0])
        await trio.testing.wait_all_tasks_blocked()
        authority.pushes.set()
        await trio.sleep(1)
        assert (await keeper.certificate(IDS[0])).serial == 2

    run(authority, body)


def test_nothing_is_known_of_an_identity_nobody_asked_for() -> None:
    async def body(keeper: Keeper) -> None:
        await trio.lowlevel.checkpoint()
        assert keeper.current(IDS[0]) is None
        assert keeper.dump() == []

    run(FakeAuthority(), body)


@trio_test(autojump=True)
async def test_what_is_asked_before_the_keeper_runs_is_served_when_it_does() -> None:
    keeper = Keeper(FakeAuthority(), clock=WallClock(now), rng=Random(1))
    keeper.prefetch(IDS[0])
    async with trio.open_nursery() as nursery:
        await nursery.start(keeper.run)
        await keeper.certificate(IDS[0])
        nursery.cancel_scope.cancel()


@trio_test(autojump=True)
async def test_what_is_forgotten_before_the_keeper_runs_holds_no_place() -> None:
    keeper = Keeper(
        FakeAuthority(), clock=WallClock(now), rng=Random(1), settings=KeeperSettings(fetches_at_once=1)
    )
    keeper.prefetch(IDS[0])
    keeper.forget(IDS[0])
    async with trio.open_nursery() as nursery:
        await nursery.start(keeper.run)
        await keeper.certificate(IDS[1])
        nursery.cancel_scope.cancel()


@trio_test(autojump=True)
async def test_identities_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    keeper = Keeper(
        FakeAuthority(), clock=WallClock(now), rng=Random(1), settings=KeeperSettings(most_identities=1)
    )
    keeper.prefetch(IDS[0])
    with caplog.at_level(logging.INFO, "ztunnel::identity::manager"):
        keeper.prefetch(IDS[1])
    with pytest.raises(Unavailable, match="too many identities: 1"):
        await keeper.certificate(IDS[2])

    assert caplog.messages == ["couldn't prefetch: too many identities: 1"]


def test_a_certificate_past_its_half_life_is_not_asked_for_in_a_loop() -> None:
    authority = FakeAuthority(lifetime=0)
    clock = trio.testing.MockClock(autojump_threshold=0)

    async def main() -> None:
        keeper = Keeper(authority, clock=WallClock(now), rng=Random(1))
        async with trio.open_nursery() as nursery:
            await nursery.start(keeper.run)
            await keeper.certificate(IDS[0])
            await trio.sleep(3.5)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=clock)

    assert len(authority.calls) == 4


def test_cancelled_at_any_step_it_leaves_nothing_behind() -> None:
    async def body(keeper: Keeper) -> None:
        async with trio.open_nursery() as nursery:
            for identity in IDS[:3]:
                nursery.start_soon(keeper.certificate, identity)
            await trio.sleep(1.5)
            keeper.forget(IDS[5])
        keeper.forget(IDS[0])
        await trio.sleep(10)

    def scenario() -> Awaitable[None]:
        return keeping(FakeAuthority(latency=1, lifetime=8), body, fetches_at_once=1)()

    assert cancelled_everywhere_now(scenario) > 10


POD = AttestedPod("uid-1", WorkloadInfo("web", "ns", "id1"), (4, 7))
OTHER_POD = AttestedPod("uid-2", WorkloadInfo("web", "ns", "id1"), (4, 8))


def test_pods_that_are_attested_have_certificates_of_their_own() -> None:
    authority = FakeAuthority(attests_pods=True)

    async def body(keeper: Keeper) -> None:
        identity = IDS[0].identity
        first, second = [await keeper.of_pod(pod).certificate(identity) for pod in (POD, OTHER_POD)]

        assert first is not second
        assert [state.key.pod for state in keeper.dump()] == [POD, OTHER_POD]

    run(authority, body)


def test_pods_that_are_not_attested_share_the_certificate_of_their_identity() -> None:
    authority = FakeAuthority()

    async def body(keeper: Keeper) -> None:
        identity = IDS[0].identity
        first, second = [await keeper.of_pod(pod).certificate(identity) for pod in (POD, OTHER_POD)]

        assert first is second
        assert authority.calls == [IDS[0]]

    run(authority, body)


def test_a_pod_that_is_gone_takes_its_certificates_along_and_no_others() -> None:
    authority = FakeAuthority(attests_pods=True)

    async def body(keeper: Keeper) -> None:
        for pod in (POD, OTHER_POD):
            await keeper.of_pod(pod).certificate(IDS[0].identity)
        keeper.of_pod(POD).forget()

        assert [state.key.pod for state in keeper.dump()] == [OTHER_POD]
        assert [key.pod for key in authority.closed] == [POD]

    run(authority, body)


def test_a_withdrawn_certificate_is_not_kept() -> None:
    authority = FakeAuthority()

    async def body(keeper: Keeper) -> None:
        await keeper.certificate(IDS[0])
        authority.failure = Withdrawn("no longer registered")
        authority.pushes.set()
        await trio.testing.wait_all_tasks_blocked()

        with pytest.raises(Unavailable, match="no longer registered"):
            await keeper.certificate(IDS[0])

    run(authority, body)


def test_what_comes_late_is_taken_at_once_also_after_a_failure() -> None:
    authority = FakeAuthority(error="nothing yet")

    async def body(keeper: Keeper) -> None:
        with pytest.raises(Unavailable):
            await keeper.certificate(IDS[0])
        began = trio.current_time()
        authority.error = None
        authority.pushes.set()
        await trio.testing.wait_all_tasks_blocked()

        assert (await keeper.certificate(IDS[0])).identity == IDS[0].identity
        assert trio.current_time() == began

    run(authority, body)


def test_a_connection_has_what_is_pending_looked_for_and_waits_a_little() -> None:
    authority = FakeAuthority(failure=Pending("no process yet"))

    async def body(keeper: Keeper) -> None:
        results: list[WorkloadCertificate | str] = []
        await ask(keeper, IDS[0], results)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, keeper, IDS[0], results)
            await trio.testing.wait_all_tasks_blocked()
            assert authority.hurried == [IDS[0]] * 2
            authority.failure = None
            authority.pushes.set()

        assert results[0] == "no process yet"
        assert isinstance(results[1], WorkloadCertificate)

    run(authority, body)


class SteppingClock:
    """The wall clock of a test, `ahead` of the one that sleeps count."""

    def __init__(self) -> None:
        self.ahead = timedelta()
        self.skews: list[float] = []

    def now(self) -> datetime:
        return now() + self.ahead

    def step(self, seconds: float) -> None:
        self.ahead += timedelta(seconds=seconds)


def stepping(authority: FakeAuthority, body: Callable[[Keeper, SteppingClock], Awaitable[None]]) -> None:
    """Run `body` with a keeper and the clock it looks at, which is watched for steps."""

    async def main() -> None:
        stepped = SteppingClock()
        authority.now = stepped.now
        clock = WallClock(stepped.now)
        settings = KeeperSettings(backoff=replace(FETCHING, jitter=0))
        keeper = Keeper(
            authority, clock=clock, rng=Random(1), settings=settings, tell_skew=stepped.skews.append
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(clock.run)
            await nursery.start(keeper.run)
            await body(keeper, stepped)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_what_ended_in_a_suspend_is_never_returned_and_a_new_one_asked_for_at_once() -> None:
    authority = FakeAuthority(latency=0.1, lifetime=600)
    results: list[WorkloadCertificate | str] = []

    async def body(keeper: Keeper, clock: SteppingClock) -> None:
        await keeper.certificate(IDS[0])
        clock.step(900)
        assert keeper.dump()[0].state == (
            "Unavailable: the certificate ended at 2026-05-01T00:10:00Z, and it is 2026-05-01T00:15:00Z here"
        )
        assert keeper.census() == {
            "initializing": 0, "available": 0, "unavailable": 0, "expired": 1, "not_yet_valid": 0
        }  # fmt: skip
        assert keeper.current(IDS[0]) is None
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(ask, keeper, IDS[0], results)
        assert trio.current_time() < 0.3  # no look of the clock's was waited for
        assert keeper.dump()[0].state == "Available"

    stepping(authority, body)

    assert [one.serial for one in results if isinstance(one, WorkloadCertificate)] == [2] * 5


def test_what_cannot_be_renewed_after_a_suspend_fails_and_is_tried_again() -> None:
    authority = FakeAuthority(lifetime=600)

    async def body(keeper: Keeper, clock: SteppingClock) -> None:
        await keeper.certificate(IDS[0])
        clock.step(900)
        authority.error = "no way"
        with pytest.raises(Unavailable, match="no way"):
            await keeper.certificate(IDS[0])
        authority.error = None
        await trio.sleep(1.1)
        assert (await keeper.certificate(IDS[0])).serial == 3

    stepping(authority, body)


def test_a_step_past_the_half_life_renews_at_once_without_anybody_asking() -> None:
    authority = FakeAuthority(lifetime=7200)

    async def body(keeper: Keeper, clock: SteppingClock) -> None:
        await keeper.certificate(IDS[0])
        clock.step(3000)
        await trio.sleep(5)
        assert len(authority.calls) == 1
        clock.step(700)
        await trio.sleep(1.5)
        assert len(authority.calls) == 2
        await trio.sleep(3595)
        assert len(authority.calls) == 2
        await trio.sleep(10)
        assert len(authority.calls) == 3

    stepping(authority, body)


def test_a_step_back_puts_the_renewal_off_but_no_retry() -> None:
    authority = FakeAuthority(lifetime=7200)

    async def body(keeper: Keeper, clock: SteppingClock) -> None:
        await keeper.certificate(IDS[0])
        await trio.sleep(3000)
        clock.step(-1000)
        await trio.sleep(1590)
        assert len(authority.calls) == 1
        authority.error = "no"
        await trio.sleep(20)
        assert len(authority.calls) == 5
        calls = len(authority.calls)
        clock.step(-1000)
        await trio.sleep(20)
        assert len(authority.calls) > calls

    stepping(authority, body)


def test_a_step_back_before_a_certificates_beginning_has_another_asked_for() -> None:
    authority = FakeAuthority(lifetime=7200)

    async def body(keeper: Keeper, clock: SteppingClock) -> None:
        await keeper.certificate(IDS[0])
        clock.step(-3600)
        assert keeper.dump()[0].state.startswith(
            "NotYetValid: the certificate is valid from 2026-05-01T00:00:00Z"
        )
        await trio.sleep(1.5)
        assert keeper.dump()[0].state == "Available"

    stepping(authority, body)


@pytest.mark.parametrize(
    ("behind", "text"),
    [
        (-7200, "the certificate ended at 2026-05-01T00:00:00Z, and it is 2026-05-01T01:00:00Z here"),
        (300, "the certificate is valid from 2026-05-01T00:05:00Z, and it is 2026-05-01T00:00:00Z here"),
    ],
)
def test_a_leaf_outside_its_validity_on_arrival_is_told_with_both_times_and_the_skew(
    behind: float, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One that has ended is a failure; one that begins later serves: peers may have the better clock."""
    authority = FakeAuthority(lifetime=3600)

    async def body(keeper: Keeper, clock: SteppingClock) -> None:
        clock.ahead = timedelta(seconds=3600 if behind < 0 else 0)
        authority.now = lambda: clock.now() + timedelta(seconds=behind)
        if behind < 0:
            with pytest.raises(Unavailable, match=text):
                await keeper.certificate(IDS[0])
            assert keeper.dump()[0].state.startswith(f"Unavailable: {text}; this clock and the authority's")
        else:
            assert (await keeper.certificate(IDS[0])).serial == 1
            assert keeper.dump()[0].state == f"NotYetValid: {text}"
        assert clock.skews == [3600 if behind < 0 else 300]

    with caplog.at_level(logging.ERROR, "ztunnel::identity::manager"):
        stepping(authority, body)

    skew = 3600 if behind < 0 else 300
    assert caplog.records[0].getMessage() == (
        f"certificate of spiffe://td/ns/ns/sa/id1 on arrival: {text}; "
        f"this clock and the authority's differ by {skew} s or more"
    )


def test_how_long_the_first_to_end_is_valid_can_be_asked() -> None:
    authority = FakeAuthority(lifetime=600)

    async def body(keeper: Keeper, clock: SteppingClock) -> None:
        assert keeper.seconds_left() is None
        await keeper.certificate(IDS[0])
        authority.lifetime = 60
        await keeper.certificate(IDS[1])
        assert keeper.seconds_left() == pytest.approx(60)
        clock.step(100)
        assert keeper.seconds_left() == pytest.approx(-40)

    stepping(authority, body)
