"""Streams of certificates on a fake clock: what replaces what, what is kept, who is told what and when."""

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NoReturn

import pytest
import trio
import trio.testing

from tests.fakes.cancellation import cancelled_everywhere_now
from tests.unit.model.test_svid import OTHER, WEB, svid_of
from ztunnel_trio.certs.provider import Pending, Withdrawn
from ztunnel_trio.certs.subscribed import TIMEOUT_TEXT, SubscribedCertificates, SubscriptionSettings
from ztunnel_trio.errors import Unavailable
from ztunnel_trio.model.certificate_key import CertificateKey
from ztunnel_trio.model.identity import SpiffeId
from ztunnel_trio.model.svid import Svid, SvidState
from ztunnel_trio.model.workload_reference import ByCalling, Reference
from ztunnel_trio.supervise.keep_running import Supervisor

KEY = CertificateKey(WEB)
FIRST, SECOND = svid_of(WEB), svid_of(WEB)
NOBODY = SvidState(())


@dataclass(eq=False)
class Stream:
    """One opened stream, for the test to speak on."""

    opened_at: float
    deliver: Callable[[SvidState], None]
    end: trio.Event = field(default_factory=trio.Event)
    error: str | None = None

    def say(self, *svids: Svid) -> None:
        self.deliver(SvidState(svids))

    def fail(self, text: str) -> None:
        self.error = text
        self.end.set()


@dataclass(eq=False)
class FakeSource:
    """A source whose streams the test ends and speaks on."""

    attests_pods: bool = True
    streams: list[Stream] = field(default_factory=list)
    is_located: bool = True
    located: trio.Event = field(default_factory=trio.Event)
    answer: Svid | None = None  # said on every stream at once

    async def run(self) -> NoReturn:
        await trio.sleep_forever()
        raise AssertionError("unreachable")

    async def locate(self, key: CertificateKey) -> Sequence[Reference]:
        if not self.is_located:
            await self.located.wait()
        return [ByCalling()]

    async def follow(
        self, key: CertificateKey, found: Sequence[Reference], deliver: Callable[[SvidState], None]
    ) -> None:
        stream = Stream(trio.current_time(), deliver)
        self.streams.append(stream)
        if self.answer is not None:
            stream.say(self.answer)
        await stream.end.wait()
        if stream.error is not None:
            raise Unavailable(stream.error)

    def hurry(self, key: CertificateKey) -> None:
        self.is_located = True
        self.located.set()


Body = Callable[[FakeSource, SubscribedCertificates], Awaitable[None]]


def scenario(source: FakeSource, body: Body) -> Callable[[], Awaitable[None]]:
    async def main() -> None:
        settings = SubscriptionSettings(first_state_seconds=10.0)
        provider = SubscribedCertificates(source, Supervisor(random.Random(1)), settings)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(provider.run)
            await body(source, provider)
            nursery.cancel_scope.cancel()

    return main


def run(body: Body, source: FakeSource | None = None) -> None:
    clock = trio.testing.MockClock(autojump_threshold=0)
    trio.run(scenario(source or FakeSource(answer=FIRST), body), clock=clock)


def test_a_state_replaces_the_one_before_in_one_step() -> None:
    async def body(source: FakeSource, provider: SubscribedCertificates) -> None:
        first = await provider.fetch(KEY)
        source.streams[0].say(SECOND)
        await provider.changed(KEY)
        second = await provider.fetch(KEY)

        assert [first.leaf_der, second.leaf_der] == [FIRST.chain_der[0], SECOND.chain_der[0]]
        assert len(source.streams) == 1

    run(body)


def test_a_state_that_says_the_same_again_changes_nothing() -> None:
    async def body(source: FakeSource, provider: SubscribedCertificates) -> None:
        await provider.fetch(KEY)
        source.streams[0].say(FIRST)

        with trio.move_on_after(5) as waiting:
            await provider.changed(KEY)
        assert waiting.cancelled_caught

    run(body)


def test_states_of_others_only_are_told_as_such_and_end_nothing() -> None:
    async def body(source: FakeSource, provider: SubscribedCertificates) -> None:
        with pytest.raises(Unavailable, match=f"Mismatched identity: expected {WEB}, got {OTHER}"):
            await provider.fetch(KEY)
        source.streams[0].say(FIRST)
        await provider.changed(KEY)

        assert (await provider.fetch(KEY)).identity == WEB
        assert len(source.streams) == 1

    run(body, FakeSource(answer=svid_of(OTHER)))


def test_who_waits_for_a_first_state_is_told_after_ten_seconds_and_recovers() -> None:
    async def body(source: FakeSource, provider: SubscribedCertificates) -> None:
        began = trio.current_time()
        with pytest.raises(Pending, match=TIMEOUT_TEXT):
            await provider.fetch(KEY)
        assert trio.current_time() - began == 10.0
        source.streams[0].say()
        with pytest.raises(Pending, match=TIMEOUT_TEXT):
            await provider.fetch(KEY)
        source.streams[0].say(FIRST)

        assert (await provider.fetch(KEY)).identity == WEB
        assert len(source.streams) == 1, "an empty state ends no stream"

    run(body, FakeSource())


def test_a_workload_that_is_not_there_yet_holds_no_place_among_the_openings() -> None:
    source = FakeSource(answer=FIRST, is_located=False)

    async def waiting(source: FakeSource, provider: SubscribedCertificates) -> None:
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(expect_pending, provider, CertificateKey(SpiffeId("td", "n", str(number))))
        provider.hurry(KEY)

        assert (await provider.fetch(KEY)).identity == WEB

    run(waiting, source)


async def expect_pending(provider: SubscribedCertificates, key: CertificateKey) -> None:
    with pytest.raises(Pending):
        await provider.fetch(key)


def test_what_is_no_longer_named_is_withdrawn() -> None:
    async def body(source: FakeSource, provider: SubscribedCertificates) -> None:
        await provider.fetch(KEY)
        source.streams[0].say(svid_of(OTHER))
        await provider.changed(KEY)

        with pytest.raises(Withdrawn, match="Mismatched identity"):
            await provider.fetch(KEY)

    run(body)


def test_a_withdrawal_is_not_forgotten_when_the_stream_fails() -> None:
    async def body(source: FakeSource, provider: SubscribedCertificates) -> None:
        await provider.fetch(KEY)
        source.streams[0].say()
        await provider.changed(KEY)
        with pytest.raises(Withdrawn):
            await provider.fetch(KEY)
        source.answer = None
        source.streams[0].fail("gone")
        await trio.sleep(3)

        assert len(source.streams) == 2
        with trio.move_on_after(1) as nothing_new:
            await provider.changed(KEY)
        assert nothing_new.cancelled_caught

    run(body)


def test_a_stream_that_fails_is_told_and_the_next_one_says_that_all_is_well() -> None:
    async def body(source: FakeSource, provider: SubscribedCertificates) -> None:
        first = await provider.fetch(KEY)
        source.streams[0].fail("Unavailable: workload attestation failed")
        await provider.changed(KEY)
        with pytest.raises(Unavailable, match="workload attestation failed") as raised:
            await provider.fetch(KEY)
        assert not isinstance(raised.value, (Withdrawn, Pending))
        await provider.changed(KEY)

        assert await provider.fetch(KEY) == first

    run(body)


def test_streams_are_opened_again_after_1_2_4_to_30_seconds_spread_by_a_fifth() -> None:
    async def failing(source: FakeSource, provider: SubscribedCertificates) -> None:
        with trio.move_on_after(200):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fail_each, source)
                with pytest.raises(Unavailable):
                    await provider.fetch(KEY)
                await trio.sleep_forever()
        opened = [stream.opened_at for stream in source.streams]
        waits = [later - earlier for earlier, later in pairwise(opened)]

        for wait, nominal in zip(waits, (1, 2, 4, 8, 16, 30, 30), strict=False):
            assert 0.8 * nominal <= wait <= 1.2 * nominal

    run(failing, FakeSource())


async def fail_each(source: FakeSource) -> None:
    seen = 0
    while True:
        await trio.testing.wait_all_tasks_blocked()
        for stream in source.streams[seen:]:
            stream.fail("no")
        seen = len(source.streams)
        await trio.sleep(0.001)


def test_asking_for_more_than_there_is_opens_the_stream_anew_at_once() -> None:
    async def body(source: FakeSource, provider: SubscribedCertificates) -> None:
        first = await provider.fetch(KEY)
        began = trio.current_time()
        source.answer = SECOND
        second = await provider.fetch(KEY)

        assert second != first
        assert trio.current_time() == began
        assert len(source.streams) == 2

    run(body)


def test_a_key_that_is_closed_has_no_stream_and_no_certificate() -> None:
    async def body(source: FakeSource, provider: SubscribedCertificates) -> None:
        await provider.fetch(KEY)
        provider.close(KEY)
        provider.close(KEY)
        source.streams[0].fail("no")
        await trio.sleep(60)

        assert len(source.streams) == 1
        assert (await provider.fetch(KEY)).identity == WEB

    run(body)


def test_revocation_lists_are_kept_by_key_and_told() -> None:
    told: list[None] = []

    async def body(source: FakeSource, provider: SubscribedCertificates) -> None:
        provider.on_crls = lambda: told.append(None)
        await provider.fetch(KEY)
        source.streams[0].deliver(SvidState((FIRST,), crls_der=(b"list",)))
        assert provider.crls == {KEY: (b"list",)}
        source.streams[0].deliver(SvidState((FIRST,), crls_der=(b"list",)))
        provider.close(KEY)

        assert provider.crls == {}
        assert len(told) == 2

    run(body)


def test_cancelled_at_every_step_nothing_is_left() -> None:
    async def main() -> None:
        source = FakeSource(answer=FIRST)

        async def body(source: FakeSource, provider: SubscribedCertificates) -> None:
            await provider.fetch(KEY)
            source.streams[0].say(SECOND)
            await provider.fetch(KEY)
            provider.close(KEY)

        await scenario(source, body)()

    assert cancelled_everywhere_now(main) > 3
